//! The fuzz target `batch_body`; its property is in `weir_fuzz`.
#![cfg_attr(fuzzing, no_main)]
#![cfg_attr(fuzzing, allow(unsafe_code, missing_docs, reason = "libfuzzer-sys' macro exports C functions"))]

weir_fuzz::entry!("batch_body");
