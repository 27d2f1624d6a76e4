# Messages of the scripts: progress, timed steps, and errors that end the script. Sourced, never run.
# shellcheck shell=sh

# Everything goes to stderr: a script's stdout belongs to the program that it starts.
say() { printf '%s\n' "$*" >&2; }

# die MESSAGE...: prints one line per argument, then exits with status 1.
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 1
}

# step TITLE COMMAND...: runs an external command, shows how long it took, ends the script if it fails.
step() {
    step_title=$1
    shift
    say "==> $step_title"
    step_start=$(date +%s)
    step_status=0
    "$@" || step_status=$?
    step_seconds=$(($(date +%s) - step_start))
    if [ "$step_status" -ne 0 ]; then
        say "==> $step_title: failed after $step_seconds s (exit status $step_status)"
        exit "$step_status"
    fi
    say "    $step_seconds s"
}
