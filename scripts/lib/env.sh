# Paths: the checkout, the cache, the build output, libonnxruntime. Sourced, never run.
# shellcheck shell=sh
# shellcheck source=scripts/lib/say.sh

unset CDPATH
cd "$(dirname "$0")/.." || exit
. scripts/lib/say.sh

if [ -z "${WEIR_CACHE:-}" ]; then
    if [ -z "${XDG_CACHE_HOME:-}" ] && [ -z "${HOME:-}" ]; then
        die "neither WEIR_CACHE, XDG_CACHE_HOME nor HOME is set" "Set WEIR_CACHE to a folder for downloads and build output."
    fi
    WEIR_CACHE=${XDG_CACHE_HOME:-${HOME:-}/.cache}/weir
fi
: "${CARGO_TARGET_DIR:=$WEIR_CACHE/target}"
mkdir -p "$WEIR_CACHE" "$CARGO_TARGET_DIR" || die "cannot write to $WEIR_CACHE or $CARGO_TARGET_DIR" \
    "Set WEIR_CACHE and CARGO_TARGET_DIR to folders that you may write to."
WEIR_CACHE=$(cd "$WEIR_CACHE" && pwd)
CARGO_TARGET_DIR=$(cd "$CARGO_TARGET_DIR" && pwd)

# Cargo compares modification times: the build output of another checkout in the same folder looks up to date, whatever the
# sources here are. The sources are therefore touched. (Two checkouts that build at the same time need separate CARGO_TARGET_DIRs.)
checkout=$(pwd -P)
built_from=$CARGO_TARGET_DIR/checkout
if [ -e "$built_from" ] && [ "$(cat "$built_from")" != "$checkout" ]; then
    git ls-files -z --cached --others --exclude-standard | xargs -0 touch -c ||
        say "The build output in $CARGO_TARGET_DIR is from another checkout, and may be used for this one."
fi
printf '%s\n' "$checkout" >"$built_from"

WEIR_ORT_VERSION=$(sed -n 's/^version *= *//p' scripts/onnxruntime.ini)
WEIR_ORT_FETCHED=$WEIR_CACHE/onnxruntime/$WEIR_ORT_VERSION/libonnxruntime.so
: "${ORT_DYLIB_PATH:=$WEIR_ORT_FETCHED}"
: "${WEIR_FP32_BUNDLE:=$WEIR_CACHE/models/fish-fp32/1}"

# The tools in the cache come last: those of the machine take precedence.
PATH=$PATH:$WEIR_CACHE/venv-cmake/bin${HOME:+:$HOME/.cargo/bin}

export WEIR_CACHE CARGO_TARGET_DIR ORT_DYLIB_PATH WEIR_FP32_BUNDLE PATH
