#!/bin/sh
# Has Mosquitto read its certificates, ACL and passwords again when one of them was replaced: it looks at them only
# when it is told to. Existing connections stay.
#   reload.sh FOLDER...
set -eu
state() {
  # shellcheck disable=SC2046  no name here has a space
  cat $(find -L "$@" -type f ! -path '*/..*' | sort) | md5sum
}
before=$(state "$@")
while sleep "${EVERY:-10}"; do
  now=$(state "$@") || continue
  [ "$now" != "$before" ] || continue
  # If it is not there it may just have begun to read: it is told later then.
  kill -HUP $(pidof mosquitto) || continue
  before=$now
  echo "certificates, ACL or passwords have changed: Mosquitto reads them again"
done
