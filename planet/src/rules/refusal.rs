//! How a refusal is put in words.

use std::fmt::Display;
use std::time::Duration;

use podmesh_proto::planet_api::{Refusal, RefusalCode};

/// A refusal for good.
pub(crate) fn refuse(code: RefusalCode, reason: impl Display) -> Refusal {
    Refusal {
        code,
        reason: reason.to_string(),
        retry_in: None,
    }
}

/// A refusal for now.
pub(crate) fn not_now(code: RefusalCode, reason: impl Display, retry_in: Duration) -> Refusal {
    Refusal {
        code,
        reason: reason.to_string(),
        retry_in: Some(retry_in),
    }
}
