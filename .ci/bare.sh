#!/usr/bin/env bash
# The project on a machine that has nothing: a fresh Debian root with Python and venv, git, make and certificates. No
# fonts, no compiler, no LaTeX, no browser, no locale, no `ps`. A clone of HEAD goes into it and is used as a newcomer
# would use it. What a machine that is worked on hides comes to light here.
#
#   .ci/bare.sh [test|demo|quick] [--user NAME] [--venv DIR] [--umask MASK]
#
# test (the default): `make test`. demo: `make demo`. quick: lint, types and the tests of figures and of bad input.
# --user: who runs it: newcomer (the default), who is made, or root. Homes have mode 0700.
# --venv: VENV of the Makefile, the environment's folder (default: .venv in the clone); ~ is the user's home, in the root.
# --umask: 0022 by default.
#
# As root, on Debian, with debootstrap. Packages come from where this machine's apt takes them, pip is configured as here
# (`pip config list`; the local folders that it names are there, read-only), the network is the host's. All mounts are in
# a mount namespace of its own, all processes in a process namespace: both go with the script, however it ends. BARE_DIR
# (/var/tmp/bare) keeps the root for next time; what a run wrote into it is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { echo "bare: $*"; }
die() { echo "bare: $*" >&2; exit 2; }

what=test user=newcomer venv=.venv mask=0022
while (($#)); do
  case $1 in
    test | demo | quick) what=$1 ;;
    --user | --venv | --umask)
      (($# > 1)) || die "$1: a value is missing"
      case $1 in --user) user=$2 ;; --venv) venv=$2 ;; --umask) mask=$2 ;; esac
      shift ;;
    *) die "$1: allowed are test, demo, quick, --user NAME, --venv DIR, --umask MASK" ;;
  esac
  shift
done
((EUID == 0)) || die "it makes a root folder and mounts: run it as root"
type debootstrap unshare >/dev/null || die "debootstrap and unshare are needed (apt-get install debootstrap util-linux)"
case $what in
  test) command='make test' ;;
  demo) command='make demo' ;;
  quick) command='make lint && "$VENV/bin/python" -m pytest -q tests/analysis/test_figures.py tests/analysis/test_sweeps.py tests/commands/test_bad_input.py' ;;
esac

keep=${BARE_DIR:-/var/tmp/bare}
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
base=$keep/$suite
mkdir -p "$keep"
if [[ ! -e $base ]]; then
  mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v suite="$suite" '$1 == suite { print $2; exit }')
  [[ $mirror ]] || die "apt has no source for $suite: 'apt-get indextargets' names none"
  eval "$(apt-config shell proxy Acquire::http::Proxy)"
  say "making a root of Debian $suite in $base (once, about a minute)"
  rm -rf "$base.new"
  (
    umask 0022
    [[ ${proxy:-} ]] && export http_proxy=$proxy
    debootstrap --variant=minbase --include=python3,python3-venv,git,make,ca-certificates "$suite" "$base.new" "$mirror"
  ) >"$keep/debootstrap.log" 2>&1 || die "debootstrap failed, see $keep/debootstrap.log"
  mv "$base.new" "$base"
fi

scratch=$(mktemp -d "$keep/run.XXXXXX")
child=
finish() {
  [[ $child ]] && kill "$child" 2>/dev/null && wait "$child" || true
  rm -rf "$scratch"
  say "removed $scratch"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP
mkdir "$scratch"/{upper,work,root}
chmod 0755 "$scratch" "$scratch"/*

# pip as it is configured here: its settings, whoever made them, in one file; what comes from the environment stays there.
settings=$(python3 -m pip config list 2>/dev/null | tr -d "'" || true)
mkdir -p "$scratch/upper/etc"
{
  echo '[global]'
  sed -n 's/^\(global\|user\|site\|install\)\.\([^=]*\)=/\2 = /p' <<<"$settings"
} >"$scratch/upper/etc/pip.conf"
environment=()
while IFS= read -r -d '' pair; do
  [[ $pair == PIP_* && $pair != PIP_CONFIG_FILE=* ]] && environment+=("$pair")
done < <(env -0)
# An index by file:// has its files beside it, so the folder around it is needed.
folders=$(sed 's/^[^=]*=//' <<<"$settings" | tr ' ' '\n' | sed -n 's|^file://\(/.*\)/[^/]*/*$|\1|p; s|^/|/|p' | sort -u)

say "cloning $(git rev-parse --short HEAD); what is not committed is left out"
# A user of git who is not the owner of a repository is refused it, so the clone is made from here.
git clone --quiet --no-local "file://$PWD" "$scratch/project"

cat >"$scratch/inside" <<'INSIDE'
set -euo pipefail
root=$1 scratch=$2 base=$3 user=$4 venv=$5 mask=$6 folders=$7 command=$8
shift 8
mount -t overlay overlay -o "lowerdir=$base,upperdir=$scratch/upper,workdir=$scratch/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
for path in $folders; do
  [[ -e $path ]] || continue
  if [[ -d $path ]]; then mkdir -p "$root$path"; else mkdir -p "$root${path%/*}" && touch "$root$path"; fi
  mount --bind "$path" "$root$path"
  mount -o remount,bind,ro "$root$path"
done
home=/root
if [[ $user != root ]]; then
  chroot "$root" /usr/sbin/useradd --create-home --shell /bin/bash "$user"
  home=/home/$user
fi
chmod 0700 "$root$home"
mv "$scratch/project" "$root$home/project"
chroot "$root" /bin/chown -R "$user:" "$home/project"
venv=${venv/#\~/$home}
echo "bare: as $user, umask $mask, VENV=$venv: $command"
# Not exec: the shell is the namespace's first process, and waits for orphans as a machine's does.
env -i "$@" HOME="$home" USER="$user" LOGNAME="$user" VENV="$venv" PATH=/usr/local/bin:/usr/bin:/bin \
  /usr/sbin/chroot --userspec="$user" "$root" /bin/bash -c "umask $mask && cd ~/project && $command"
INSIDE

status=0
unshare --mount --propagation private --pid --fork --kill-child \
  bash "$scratch/inside" "$scratch/root" "$scratch" "$base" "$user" "$venv" "$mask" "$folders" "$command" \
  "${environment[@]}" </dev/null &
child=$!
wait "$child" || status=$?
say "$command: $([[ $status == 0 ]] && echo passed || echo "failed with status $status")"
exit $status
