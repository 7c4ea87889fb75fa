# Sourced by the other scripts.

# Prints a Python that is 3.11 or newer and can make a virtual environment. $PYTHON goes first.
find_python() {
  for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "tocsin needs Python 3.11 or newer with its venv module (on Debian: apt-get install python3-venv)" >&2
  return 1
}
