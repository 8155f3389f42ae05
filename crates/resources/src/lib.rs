//! One file per built-in kind: names, scope, defaulting, validation, update rules, columns, selectable
//! fields. Discovery, OpenAPI, tables, short names and garbage-collection lists are derived from [`all`].

use std::sync::LazyLock;

use def::ResourceDef;

mod apps;
mod authentication;
mod authorization;
mod canonical;
mod check;
mod common;
mod coordination;
mod core;
pub mod def;
mod discovery;
mod podspec;
mod rbac;

/// The groups, each with its kinds.
static GROUPS: &[&[&ResourceDef]] = &[
    core::KINDS,
    apps::KINDS,
    authentication::KINDS,
    authorization::KINDS,
    coordination::KINDS,
    discovery::KINDS,
    rbac::KINDS,
];

static ALL: LazyLock<Vec<&'static ResourceDef>> = LazyLock::new(|| GROUPS.concat());

/// Every built-in resource, group by group.
pub fn all() -> &'static [&'static ResourceDef] {
    &ALL
}

/// The resource of an API group (empty for core) by its plural name.
pub fn find(group: &str, plural: &str) -> Option<&'static ResourceDef> {
    ALL.iter().copied().find(|def| def.group == group && def.plural == plural)
}
