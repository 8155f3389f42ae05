//! Structural schemas of custom resources: compiled once per version of a CustomResourceDefinition, then used
//! to prune, default, coerce and validate objects, and to publish them.
//!
//! Pure: no clock, no tokio, no store. Messages and the order of checks follow
//! `k8s.io/apiextensions-apiserver` and `k8s.io/kube-openapi/pkg/validation`.

pub mod column;
pub mod defaults;
pub mod field_path;
pub mod formats;
pub mod json_path;
pub mod list_types;
pub mod object_meta;
mod pattern;
pub mod prune;
pub mod publish;
pub mod schema;
pub mod structure;
pub mod validate;

pub use schema::{Additional, Rule, Schema};
