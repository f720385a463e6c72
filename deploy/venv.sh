#!/usr/bin/env bash
# Make .venv hold exactly requirements/PROFILE.txt and headrace itself, editable; PROFILE is cpu
# (default) or broker. Returns at once when the content stamp says that it already does.
# The stamp is removed first and written last, so an interrupted set-up is redone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

profile=${1:-cpu}
requirements=requirements/$profile.txt
if [ ! -f "$requirements" ]; then
  printf 'headrace set-up: there is no %s: use cpu or broker\n' "$requirements" >&2
  exit 2
fi

# The folder counts, because the scripts in .venv/bin hold its full path. In pyproject.toml only
# the part above [tool.ruff] counts: what follows sets checkers up and installs nothing.
stamp() {
  {
    printf '%s\n' "$PWD" "$profile"
    sed '/^\[tool\.ruff\]/,$d' pyproject.toml
    cat "$requirements" requirements/tasks.txt deploy/venv.sh deploy/uv.sh
  } | sha256sum
}

is_current() { [ -x .venv/bin/python ] && [ "$(cat .venv/.headrace 2>/dev/null)" = "$(stamp)" ]; }

# The interpreter behind a shim or an activated environment, if it is a Python 3.11.
base_python_311() {
  "$1" -c 'import sys; sys.version_info[:2] == (3, 11) or sys.exit(1); print(sys._base_executable)' 2>/dev/null
}

# PYTHON if it is set, else python3.11 on PATH, else one that uv knows of (it looks in more places).
find_python_311() {
  if [ -n "${PYTHON:-}" ]; then
    base_python_311 "$PYTHON" || fail "the pins are for Python 3.11 and PYTHON=$PYTHON is not one: set PYTHON to the full path of a Python 3.11"
    return
  fi
  base_python_311 python3.11 || base_python_311 "$(uv python find --system 3.11 2>/dev/null)" ||
    fail "Python 3.11 was not found: install it, or set PYTHON to its full path"
}

install() {
  local python torch_pin backend=()
  python=$(find_python_311)
  uv venv --quiet --clear --python "$python" .venv || fail "uv could not make .venv (see above)"

  # Asking for the PyTorch index always would fail without a network even where a configured index
  # or folder of wheels has the CPU build, so it is asked for only when that build is not there.
  torch_pin=$(grep '^torch==' "$requirements" || true)
  if [ -n "$torch_pin" ] &&
    ! uv pip install --quiet --dry-run --no-deps --python .venv "$torch_pin" 2>/dev/null; then
    backend=(--torch-backend=cpu)
  fi
  printf '%s\n' '-e .' | uv pip sync --quiet ${backend[@]+"${backend[@]}"} --python .venv "$requirements" - ||
    fail "some packages of $requirements were not found (see above): check the network, or point PIP_INDEX_URL or PIP_FIND_LINKS at a place that has them, then run make setup again"
}

# reasoning-gym is optional, and pycosat, which it needs, comes as C source only: a machine without a
# compiler goes without both.
install_tasks() {
  [ "$profile" = cpu ] || return 0
  uv pip install --quiet --no-deps --python .venv --requirement requirements/tasks.txt 2>/dev/null ||
    echo "headrace set-up: without reasoning-gym, whose pycosat could not be built here (install a C compiler and Python's headers, rm .venv/.headrace, then run make setup again)" >&2
}

# uv compiles nothing, and PYTHONDONTWRITEBYTECODE would keep every start of an engine twice as
# slow as it need be: one import compiles the few thousand modules that starting needs.
compile_bytecode() {
  grep -q '^vllm' "$requirements" || return 0
  local output
  output=$(env -u PYTHONDONTWRITEBYTECODE VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=WARNING \
    .venv/bin/python -c 'import vllm.v1.engine.async_llm' 2>&1) ||
    fail "the installed vLLM does not import: $output"
}

if is_current; then exit 0; fi

mkdir -p .tools
if command -v flock >/dev/null; then
  exec 9>.tools/.setup-lock
  flock 9 # two set-ups of one clone: the second waits and finds the work done
  if is_current; then exit 0; fi
fi
echo "headrace set-up: making .venv from $requirements (about a minute, once)" >&2
rm -f .venv/.headrace
# shellcheck source=deploy/uv.sh
source deploy/uv.sh
[ "$(uname -sm)" = "Linux x86_64" ] ||
  fail "the pins are for Linux x86_64 and this is $(uname -sm): use a container or another machine"
install
install_tasks
compile_bytecode
stamp >.venv/.headrace
