//! Between the protobuf form (`wire`) and the form that kubelet and runtime work with ([`crate::v1`]). Both directions
//! stand here, since both ends of a socket are ours in turn.

mod container;
mod image;
mod runtime;
mod sandbox;
mod signal;
mod stats;

pub(crate) use container::config as container_config;
pub(crate) use runtime::EVENTS;
pub(crate) use sandbox::check_users;
pub(crate) use stats::{container_stats, filesystem, sandbox_stats, sum};

use coracle_grpc::{Code, Status};

use crate::service::CriError;

/// `NamespaceMode`.
pub(crate) mod mode {
    pub(crate) const POD: i32 = 0;
    pub(crate) const CONTAINER: i32 = 1;
    pub(crate) const NODE: i32 = 2;
    pub(crate) const TARGET: i32 = 3;
}

/// `SecurityProfile.ProfileType`.
pub(crate) mod profile {
    pub(crate) const RUNTIME_DEFAULT: i32 = 0;
    pub(crate) const UNCONFINED: i32 = 1;
    pub(crate) const LOCALHOST: i32 = 2;
}

impl From<CriError> for Status {
    fn from(error: CriError) -> Self {
        let code = match &error {
            CriError::NotFound(_) => Code::NotFound,
            CriError::InvalidArgument(_) => Code::InvalidArgument,
            CriError::FailedPrecondition(_) => Code::FailedPrecondition,
            CriError::DeadlineExceeded(_) => Code::DeadlineExceeded,
            CriError::Unavailable(_) => Code::Unavailable,
            CriError::Internal(_) => Code::Unknown,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Status> for CriError {
    fn from(status: Status) -> Self {
        let text = status.message;
        match status.code {
            Code::NotFound => Self::NotFound(text),
            Code::InvalidArgument => Self::InvalidArgument(text),
            Code::FailedPrecondition => Self::FailedPrecondition(text),
            Code::DeadlineExceeded => Self::DeadlineExceeded(text),
            Code::Unavailable => Self::Unavailable(text),
            _ => Self::Internal(text),
        }
    }
}

/// All of a list in another form.
pub(crate) fn all<A, B: From<A>>(list: Vec<A>) -> Vec<B> {
    list.into_iter().map(B::from).collect()
}
