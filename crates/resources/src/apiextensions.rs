//! The `apiextensions.k8s.io` group, `v1`: definitions of custom resources.

pub mod conditions;
mod custom_resource_definition;
mod internal;
mod props;
mod schema_rules;
mod shape;
mod spec;

use crate::def::ResourceDef;

pub use shape::tidy;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&custom_resource_definition::DEF];
