//! Whether an error of ONNX Runtime is this machine's fault or the model's.
//!
//! ONNX Runtime has codes for a graph that it does not understand, and none for running out of memory, files or threads: those
//! come as general failures, whose texts hold what the system said. Files are verified before they are loaded, so that a file
//! that can't be read is the machine's fault as well.

use ort::ErrorCode;

/// What texts of this machine's faults hold, in lower case.
const SIGNS: [&str; 12] = [
    // std::bad_alloc, and the arenas' "Failed to allocate memory for requested buffer of size".
    "bad_alloc",
    "allocate memory",
    "out of memory",
    // An errno, as a number ("Load model from m.onnx failed: system error number 24") and as a text.
    "system error number",
    "too many open files",
    "resource temporarily unavailable",
    "no space left on device",
    "input/output error",
    "stale file handle",
    "permission denied",
    // Its thread pools, and what is mapped of external data.
    "pthread_create",
    "mmap",
];

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// This machine has run out of something, or its disk fails: the same may work later.
    Machine,
    /// The model's: it will not work here.
    Model,
    /// It can't be told.
    Unclear,
}

pub(super) fn of(error: &ort::Error) -> Fault {
    judge(error.code(), error.message())
}

fn judge(code: ErrorCode, message: &str) -> Fault {
    let text = message.to_lowercase();
    match code {
        ErrorCode::InvalidArgument
        | ErrorCode::NoModel
        | ErrorCode::InvalidProtobuf
        | ErrorCode::NotImplemented
        | ErrorCode::InvalidGraph => Fault::Model,
        ErrorCode::NoSuchFile | ErrorCode::DeviceReset => Fault::Machine,
        _ if SIGNS.iter().any(|sign| text.contains(sign)) => Fault::Machine,
        _ => Fault::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_is_told_from_what_the_model_is() {
        let failure = ErrorCode::GenericFailure;
        for (code, message, fault) in [
            (failure, "Exception during initialization: std::bad_alloc", Fault::Machine),
            (failure, "Load model from m.onnx failed:system error number 24", Fault::Machine),
            (failure, "open file \"m.data\" failed: Too many open files", Fault::Machine),
            (
                ErrorCode::RuntimeException,
                "Failed to allocate memory for requested buffer of size 1073741824",
                Fault::Machine,
            ),
            (ErrorCode::NoSuchFile, "Load model from m.onnx failed. File doesn't exist", Fault::Machine),
            (ErrorCode::InvalidGraph, "This is an invalid model. Error in Node: out of memory", Fault::Model),
            (ErrorCode::InvalidProtobuf, "Protobuf parsing failed.", Fault::Model),
            (failure, "Fatal error: example:Colour(-1) is not a registered function/op", Fault::Unclear),
            (
                ErrorCode::RuntimeException,
                "Non-zero status code returned while running Gather",
                Fault::Unclear,
            ),
        ] {
            assert_eq!(judge(code, message), fault, "{message}");
        }
    }
}
