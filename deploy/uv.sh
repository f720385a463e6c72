# Source me from the repository root: defines `uv`, fetched into .tools when this machine has none,
# and hands it the settings that pip was given here (uv reads none of them). Environment first,
# then pip's configuration files; a setting that uv was given itself is left alone.

host_python=
for candidate in "${PYTHON:-}" python3.11 python3 python; do
  # A pyenv shim may exist for a version that does not start, so ask it to run.
  if [ -n "$candidate" ] && "$candidate" -c '' 2>/dev/null; then
    host_python=$candidate
    break
  fi
done

fail() {
  printf 'headrace set-up: %s\n' "$1" >&2
  exit 1
}

pip_setting() { "$host_python" -m pip config get "global.$1" 2>/dev/null || true; }

# UV_NAME <- PIP_NAME or pip's global.name; blanks (pip's separator) become $4; empty stays unset.
hand_on() {
  local uv_name=$1 pip_name=$2 setting=$3 separator=${4:- } value
  [ -z "${!uv_name+set}" ] || return 0
  value=${!pip_name-$(pip_setting "$setting")}
  value=$(printf '%s' "$value" | tr -s ' \n' "$separator$separator")
  [ -z "$value" ] || export "$uv_name=$value"
}

find_uv() {
  uv_command=$(type -P uv || printf .tools/bin/uv)
  [ ! -x "$uv_command" ] || return 0
  [ -n "$host_python" ] || fail "neither uv nor Python was found: install Python 3.11, or set PYTHON to its full path"
  "$host_python" -m pip install -qq --disable-pip-version-check --target .tools 'uv>=0.13,<0.14' ||
    fail "uv is not on PATH and pip could not fetch it (see above): install uv, or give pip an index that has it (PIP_INDEX_URL)"
}

hand_on UV_FIND_LINKS PIP_FIND_LINKS find-links ,
hand_on UV_DEFAULT_INDEX PIP_INDEX_URL index-url
hand_on UV_INDEX PIP_EXTRA_INDEX_URL extra-index-url
hand_on SSL_CERT_FILE PIP_CERT cert
# With a second index uv takes every version from the first one that knows the name; all versions
# are pinned here, so looking in all of them cannot bring in another one.
: "${UV_INDEX_STRATEGY=unsafe-best-match}"
export UV_INDEX_STRATEGY UV_PYTHON_DOWNLOADS=never
find_uv
uv() { command "$uv_command" "$@"; }
