//! The core group, `v1`.

mod config_map;
pub(crate) mod endpoints;
mod event;
mod namespace;
mod node;
mod pod;
mod secret;
mod service;
mod service_account;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[
    &config_map::DEF,
    &endpoints::DEF,
    &event::DEF,
    &namespace::DEF,
    &node::DEF,
    &pod::DEF,
    &secret::DEF,
    &service::DEF,
    &service_account::DEF,
];
