// Runs in a copy of a page, in a frame: how the page is laid out, as JSON in the document around the frame.
// Contrast is WCAG 2.2's ratio of relative luminances, of each text to the nearest opaque background behind it.
addEventListener('load', async () => {
  document.querySelectorAll('details').forEach(each => { each.open = true; });
  await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
  const channels = colour => colour.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const [R, G, B] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * R + 0.7152 * G + 0.0722 * B;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = channels(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const contrast = element => {
    const [a, b] = [channels(getComputedStyle(element).color), behind(element)].map(luminance);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const isShown = element => element.getClientRects().length > 0;
  const own = e => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join(' ').trim();
  const shown = [...document.querySelectorAll('body *:not(script, style)')].filter(isShown);
  const width = document.documentElement.clientWidth;
  const found = {
    width,
    scroll_width: document.documentElement.scrollWidth,
    too_wide: shown.filter(e => !e.closest('.scroll, .unseen') && e.getBoundingClientRect().right > width + 0.5)
      .map(e => e.outerHTML.slice(0, 80)),
    cut: [...document.querySelectorAll('.scroll')].filter(e => isShown(e) && e.scrollWidth > e.clientWidth)
      .map(e => `${e.scrollWidth} > ${e.clientWidth}: ${e.textContent.trim().slice(0, 40)}`),
    requests: performance.getEntriesByType('resource').map(e => e.name).filter(name => !name.startsWith('data:')),
    texts: shown.filter(own)
      .map(e => ({text: own(e), contrast: contrast(e), size: parseFloat(getComputedStyle(e).fontSize)})),
    images: [...document.images].filter(isShown)
      .map(e => [e, e.getBoundingClientRect().width])
      .map(([e, width]) => ({alt: e.alt, natural_width: e.naturalWidth, width, source: e.currentSrc})),
    headings: [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].filter(isShown)
      .map(e => [Number(e.tagName[1]), e.textContent]),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    unnamed: [...document.querySelectorAll('[role=region], section, table, a')]
      .filter(e => isShown(e) && !(e.ariaLabel || e.textContent.trim()
        || document.getElementById(e.getAttribute('aria-labelledby')))).map(e => e.outerHTML.slice(0, 80)),
    text: document.body.innerText,
  };
  const script = parent.document.createElement('script');
  script.type = 'application/json';
  script.id = 'found';
  script.textContent = JSON.stringify(found).replaceAll('<', '\\u003c');
  parent.document.body.append(script);
});
