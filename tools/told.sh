#!/usr/bin/env bash
# told.sh TEXT COMMAND...: runs the command and tells what goes on with the seconds so far, where nothing else does.
# On a terminal it is one line that changes; elsewhere a line every ten seconds.
set -u
text=$1; shift
"$@" &
command=$!
trap 'kill "$command" 2>/dev/null' INT TERM
began=$SECONDS
printf '%s\n' "$text" >&2
while kill -0 "$command" 2>/dev/null; do
    passed=$((SECONDS - began))
    if [ -t 2 ]; then
        printf '\r%d s ' "$passed" >&2
    elif [ "$passed" -gt 0 ] && [ $((passed % 10)) -eq 0 ]; then
        printf '%d s\n' "$passed" >&2
    fi
    sleep 1
done
[ -t 2 ] && printf '\r' >&2
wait "$command"
