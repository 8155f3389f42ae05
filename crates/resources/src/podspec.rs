//! Pod specs, shared by pods and by all kinds with a pod template: defaulting and validation, one file per
//! topic.

pub(crate) mod annotations;
pub(crate) mod container;
pub(crate) mod defaults;
pub(crate) mod env;
pub(crate) mod image;
pub(crate) mod probes;
pub(crate) mod requirements;
pub(crate) mod scheduling;
pub(crate) mod security;
pub(crate) mod validation;
pub(crate) mod volume_sources;
pub(crate) mod volumes;
pub(crate) mod warnings;
mod windows;
