#!/bin/sh
# Installs or updates the agent of fleetnas on this device. A coordinator's `fleetnas broker`, `fleetnas installer` or
# `fleetnas enroll --serve` made it, for the line that is pasted here.
set -u
URL=@URL@
WHEEL=@WHEEL@
WHEEL_SHA256=@WHEEL_SHA256@
BROKER=@BROKER@
FLEET=@FLEET@
NAME=@NAME@
EXTRAS=@EXTRAS@
INDEX_URL=@INDEX_URL@
AUTHORITY=@AUTHORITY@

say() { printf '%s\n' "fleetnas: $*"; }
fail() { # WHAT NEXT
    printf '%s\n' "fleetnas: error: $1" "fleetnas: next: $2" >&2
    exit 1
}
usage() {
    cat <<'END'
Options, at the end of the pasted line:
  --run            start the agent at once, in this terminal
  --service        install and start it as a systemd service (asks for sudo)
  --dir DIR        where it is installed (default: ~/.local/share/fleetnas/agent; of a service: /opt/fleetnas)
  --extras NAMES   what is installed with it, such as agent,litert (default: onnxruntime; on 32-bit Arm: LiteRT)
  --name NAME      its name in the fleet (default: the host's name)
  --python PYTHON  the interpreter to use (default: the first python3 of version 3.10 or newer)
END
}

# A service is root's; the line is pasted as a user who may use sudo.
case " $* " in
*" --service "*)
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "a service is root's, and there is no sudo here" "paste the line as root"
        exec sudo sh "$0" "$@"
    fi
    ;;
esac
DIR='' RUN=no SERVICE=no PYTHON='' TOKEN=''
while [ $# -gt 0 ]; do
    case $1 in
    --run) RUN=yes ;;
    --service) SERVICE=yes ;;
    --help) usage && exit 0 ;;
    --dir | --extras | --name | --python | --token)
        [ $# -ge 2 ] || fail "$1 needs a value" "paste the line again, with one behind $1"
        case $1 in
        --dir) DIR=$2 ;; --extras) EXTRAS=$2 ;; --name) NAME=$2 ;; --python) PYTHON=$2 ;; --token) TOKEN=$2 ;;
        esac
        shift
        ;;
    *) usage >&2 && fail "there is no option $1" "paste the line again, with options of the list above" ;;
    esac
    shift
done
TEMPORARY=$(mktemp -d) || fail "no temporary folder can be made" "free some space in ${TMPDIR:-/tmp}, or set TMPDIR"
trap 'rm -rf "$TEMPORARY"' EXIT
trap 'exit 130' INT TERM HUP

# -- Python ------------------------------------------------------------------------------------------------------
suits() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 10))' 2>/dev/null; }
if [ -n "$PYTHON" ]; then
    suits "$PYTHON" || fail "$PYTHON is no Python 3.10 or newer" "give another with --python"
else
    for each in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$each" >/dev/null && suits "$each"; then PYTHON=$each && break; fi
    done
fi
[ -n "$PYTHON" ] || fail "there is no Python 3.10 or newer" \
    "install one, then paste the line again: sudo apt-get install python3 python3-venv (Termux: pkg install python)"
if [ -z "$EXTRAS" ]; then
    EXTRAS=agent
    [ "$("$PYTHON" -c 'import struct; print(struct.calcsize("P"))')" = 8 ] || EXTRAS=arm32
fi
[ -z "$AUTHORITY" ] || EXTRAS=$EXTRAS,secure
if [ -z "$DIR" ]; then
    DIR=/opt/fleetnas
    [ "$SERVICE" = yes ] || DIR=${XDG_DATA_HOME:-${HOME:?"is not set; give --dir DIR"}/.local/share}/fleetnas/agent
fi

# -- files of the coordinator --------------------------------------------------------------------------------------
AUTHORITY_FILE=''
if [ -n "$AUTHORITY" ]; then
    AUTHORITY_FILE=$TEMPORARY/authority.pem
    printf '%s\n' "$AUTHORITY" >"$AUTHORITY_FILE"
fi
fetch() { # PATH FILE SHA256
    "$PYTHON" - "$URL$1" "$2" "$3" "$AUTHORITY_FILE" <<'END'
import hashlib, ssl, sys, urllib.error, urllib.request

url, path, sha256, authority = sys.argv[1:]
handlers = [urllib.request.ProxyHandler({})]  # the coordinator is in this network
if authority:
    handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=authority)))
try:
    content = urllib.request.build_opener(*handlers).open(url, timeout=60).read()
except OSError as error:
    sys.exit(f"fleetnas: {url.rpartition('/')[0]} does not give it: {error}")
if sha256 and hashlib.sha256(content).hexdigest() != sha256:
    sys.exit(f"fleetnas: {url} is not what the line was made for: its SHA-256 differs")
with open(path, "wb") as file:
    file.write(content)
END
}
say "fetching $WHEEL"
fetch "/$WHEEL" "$TEMPORARY/$WHEEL" "$WHEEL_SHA256" || fail "the agent cannot be fetched from $URL" \
    "look whether the coordinator's command still runs; started again, it prints a new line to paste"
CREDENTIALS=''
if [ -n "$TOKEN" ]; then
    FOLDER=${XDG_CONFIG_HOME:-${HOME:?"is not set"}/.config}/fleetnas
    (umask 077 && mkdir -p "$FOLDER") || fail "$FOLDER cannot be made" "see who may write there"
    CREDENTIALS=$FOLDER/$NAME.credentials
    if (umask 077 && fetch "/credentials/$TOKEN" "$TEMPORARY/credentials" ''); then
        mv "$TEMPORARY/credentials" "$CREDENTIALS" || fail "$CREDENTIALS cannot be written" "see who may write there"
        say "stored the credentials $CREDENTIALS"
    elif [ -f "$CREDENTIALS" ]; then
        say "keeping the credentials $CREDENTIALS, which were fetched before"
    else
        fail "the credentials of $NAME cannot be fetched: they are given once" \
            "on the coordinator: fleetnas enroll $NAME --renew --serve; then paste its new line"
    fi
fi

# -- environment ---------------------------------------------------------------------------------------------------
if ! "$DIR/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making the environment $DIR"
    mkdir -p "$DIR" || fail "$DIR cannot be made" "give another folder with --dir"
    set -- -m venv
    case $EXTRAS in
    arm32*) # numpy and psutil have no wheels there: they are the system's
        "$PYTHON" -c 'import numpy, psutil' 2>/dev/null || fail "this 32-bit system lacks numpy or psutil" \
            "install them, then paste the line again: sudo apt-get install python3-numpy python3-psutil"
        set -- "$@" --system-site-packages
        ;;
    esac
    if ! "$PYTHON" "$@" "$DIR" >"$TEMPORARY/log" 2>&1; then
        cat "$TEMPORARY/log" >&2
        fail "$PYTHON cannot make a virtual environment" \
            "install its module, then paste the line again: sudo apt-get install python3-venv"
    fi
fi
say "installing $WHEEL[$EXTRAS]; packages come from ${INDEX_URL:-the package index that pip is set to}"
set -- --disable-pip-version-check install --progress-bar off --upgrade
[ -z "$INDEX_URL" ] || set -- "$@" --index-url "$INDEX_URL"
"$DIR/bin/python" -m pip "$@" "$TEMPORARY/$WHEEL[$EXTRAS]" >"$TEMPORARY/log" 2>&1 || {
    tail -n 15 "$TEMPORARY/log" >&2
    fail "pip cannot install the agent (above)" \
        "mend what it names (network, index, disk space, a Python with ready wheels), then paste the line again"
}
AGENT=$DIR/bin/fleetnas-agent
say "installed $("$AGENT" --version)"

# -- configuration, doctor, service ---------------------------------------------------------------------------------
SERVICE_FILE=/etc/fleetnas/agent.conf
MEND='mend it, then paste the line again'
doctor_of_service() { # as the service's user, and with its state folder
    set -- env STATE_DIRECTORY=/var/lib/fleetnas "$AGENT" doctor --config "$SERVICE_FILE"
    if command -v runuser >/dev/null; then
        set -- -- "$@"
        for each in video render gpio i2c; do # the unit has those of them that there are
            if getent group "$each" >/dev/null; then set -- -G "$each" "$@"; fi
        done
        set -- runuser -u fleetnas -g fleetnas "$@"
    fi
    (cd / && "$@") || fail "this device cannot measure yet (above)" \
        "do what it says, then look what the service does: journalctl --unit fleetnas-agent.service"
}
[ -n "$BROKER$CREDENTIALS" ] ||
    MEND='a new device of this fleet needs credentials; on the coordinator: fleetnas enroll NAME --authority DIR --serve'
set -- --fleet "$FLEET"
if [ -n "$CREDENTIALS" ]; then
    set -- --credentials "$CREDENTIALS"
else
    [ -z "$BROKER" ] || set -- "$@" --broker "$BROKER"
    [ -z "$NAME" ] || set -- "$@" --name "$NAME"
fi
if [ "$SERVICE" = no ]; then
    "$AGENT" configure "$@" || fail "the configuration cannot be written (above)" "$MEND"
    "$AGENT" doctor || fail "this device cannot measure yet (above)" \
        "do what it says, then paste the line again, or look again with: $AGENT doctor"
elif [ -f "$SERVICE_FILE" ] && [ -z "$CREDENTIALS" ]; then
    "$AGENT" configure --config "$SERVICE_FILE" "$@" && "$AGENT" install-service ||
        fail "the service cannot be updated (above)" "$MEND"
    doctor_of_service
else
    "$AGENT" install-service "$@" || fail "the service cannot be installed (above)" "$MEND"
    doctor_of_service
fi
if [ "$RUN" = yes ] && [ "$SERVICE" = no ]; then
    rm -rf "$TEMPORARY"
    say "starting the agent; stop it with Ctrl-C, start it again with: $AGENT run"
    exec "$AGENT" run
fi
[ "$SERVICE" = yes ] || say "ready; start the agent with: $AGENT run"
