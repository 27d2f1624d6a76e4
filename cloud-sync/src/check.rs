//! Checks of links, step by step: for `weir doctor`.

use std::borrow::Cow;

use crate::error::SyncResult;

/// One step of a check.
#[derive(Debug)]
pub struct CheckStep {
    /// What was tried: "put an object".
    pub what: Cow<'static, str>,
    /// A remark, or what is wrong and the remedy.
    pub outcome: SyncResult<String>,
}

/// Steps of a check; it ends at the first that fails.
#[derive(Debug, Default)]
pub(crate) struct Steps(Vec<CheckStep>);

impl Steps {
    /// Adds a step. Returns its value, `None` when it failed.
    pub(crate) fn note<T>(
        &mut self,
        what: impl Into<Cow<'static, str>>,
        result: SyncResult<T>,
        remark: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        let what = what.into();
        match result {
            Ok(value) => {
                self.0.push(CheckStep { what, outcome: Ok(remark(&value)) });
                Some(value)
            }
            Err(error) => {
                self.0.push(CheckStep { what, outcome: Err(error) });
                None
            }
        }
    }

    /// All steps so far.
    pub(crate) fn finish(self) -> Vec<CheckStep> {
        self.0
    }
}
