//! OpenAPI v2 and v3 documents, and the compiled schemas of the built-in kinds: all derived from the
//! resource definitions.
//!
//! The documents are large: callers keep the encoded bytes they serve, not these values.

mod binary;
mod custom;
mod operations;
mod params;
mod render;
mod roots;
mod schemas;

use std::collections::BTreeMap;

use coracle_meta::schema::Schemas;
use coracle_resources::def::ResourceDef;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use operations::PathItem;
use render::Flavour;

pub(crate) use binary::encode as to_protobuf;
pub use schemas::type_name;

/// The compiled schemas of the given resources and of everything they refer to.
pub fn builtin_schemas(defs: &[&ResourceDef]) -> Schemas {
    Schemas::compile(&schemas::raw(defs))
}

/// The OpenAPI v2 (Swagger) document. `version` is the server's, e.g. `v1.36.0`.
pub fn v2(defs: &[&ResourceDef], version: &str) -> Value {
    let (builtin, customs) = custom::split(defs);
    let (defs, mut items) = (&*builtin, all_paths(&builtin));
    let mut definitions = schemas::published(defs, &group_versions(defs), Flavour::V2);
    for def in customs {
        items.extend(custom::paths(def));
        definitions.extend(custom::definitions(def, Flavour::V2));
    }
    let paths = render::paths(&items, Flavour::V2);
    json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": version },
        "definitions": schemas::reachable(definitions, &paths),
        "paths": paths,
        "securityDefinitions": { "BearerToken": bearer_token() },
        "security": [{ "BearerToken": [] }],
    })
}

fn bearer_token() -> Value {
    let description = "Bearer Token authentication";
    json!({ "description": description, "type": "apiKey", "name": "authorization", "in": "header" })
}

fn all_paths(defs: &[&ResourceDef]) -> BTreeMap<String, PathItem> {
    let mut out = BTreeMap::new();
    for (group, version) in group_versions(defs) {
        out.extend(operations::of_group_version(defs, group, version));
    }
    out
}

fn group_versions<'d>(defs: &[&'d ResourceDef]) -> Vec<(&'d str, &'d str)> {
    let mut out: Vec<(&str, &str)> = defs.iter().map(|def| (def.group, def.version)).collect();
    out.sort_unstable();
    out.dedup();
    out
}

fn key(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The index of v3 documents: one path per group version, with a URL whose hash changes with its content.
pub fn v3_index(defs: &[&ResourceDef]) -> Value {
    let mut of: BTreeMap<(&str, &str), Vec<&ResourceDef>> = BTreeMap::new();
    for def in defs {
        of.entry((def.group, def.version)).or_default().push(def);
    }
    let index = |((group, version), own): ((&str, &str), Vec<&ResourceDef>)| {
        let key = key(group, version);
        let url = format!("/openapi/v3/{key}?hash={}", hash(&own, group, version));
        (key, json!({ "serverRelativeURL": url }))
    };
    let mut paths: Map<String, Value> = of.into_iter().map(index).collect();
    let builtin = &*custom::split(defs).0;
    for key in roots::keys(builtin) {
        let url = format!("/openapi/v3/{key}?hash={}", root_hash(builtin, &key));
        paths.insert(key, json!({ "serverRelativeURL": url }));
    }
    json!({ "paths": paths })
}

/// The hash of a group version's document, as in its URL. It follows the program's version and the resources
/// served, from which the document is derived.
pub fn hash(defs: &[&ResourceDef], group: &str, version: &str) -> String {
    let mut digest = Sha512::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    for def in defs.iter().filter(|def| (def.group, def.version) == (group, version)) {
        digest.update(format!("/{group}/{version}/{}/{}", def.plural, def.kind));
        for subresource in def.subresources {
            digest.update(subresource.path());
        }
        if let Some(custom) = def.strategy.custom() {
            digest.update(format!("{:?}", custom.current().source));
        }
    }
    digest.finalize().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// A number that changes with the document of a group version of custom resources; never 0.
pub fn stamp(defs: &[&ResourceDef], group: &str, version: &str) -> u64 {
    u64::from_str_radix(&hash(defs, group, version)[..16], 16).unwrap_or(0) | 1
}

/// The hash of a document beside those of group versions.
pub fn root_hash(defs: &[&ResourceDef], key: &str) -> String {
    let mut digest = Sha512::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(key);
    for def in defs.iter().filter(|def| key.ends_with(def.group)) {
        digest.update(def.version);
    }
    digest.finalize().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The v3 document of a path that is no group version (`api`, `apis/apps`, `version` …); `None` when there
/// is no such path.
pub fn v3_root(defs: &[&ResourceDef], key: &str) -> Option<Value> {
    let paths = render::paths(&roots::paths(&custom::split(defs).0, key)?, Flavour::V3);
    let schemas = schemas::reachable(schemas::of_discovery(), &paths);
    Some(document(paths, schemas))
}

fn document(paths: Value, schemas: Map<String, Value>) -> Value {
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": format!("v{}", env!("CARGO_PKG_VERSION")) },
        "paths": paths,
        "components": { "schemas": schemas, "securitySchemes": { "BearerToken": bearer_token() } },
    })
}

/// The v3 document of a group version; `None` when nothing of it is served.
pub fn v3(defs: &[&ResourceDef], group: &str, version: &str) -> Option<Value> {
    let own: Vec<&ResourceDef> =
        defs.iter().copied().filter(|def| (def.group, def.version) == (group, version)).collect();
    if own.is_empty() {
        return None;
    }
    let (builtin, customs) = custom::split(&own);
    if !customs.is_empty() {
        return Some(custom::document(&customs));
    }
    let paths = render::paths(&operations::of_group_version(&builtin, group, version), Flavour::V3);
    let definitions = schemas::published(&builtin, &[(group, version)], Flavour::V3);
    Some(document(paths.clone(), schemas::reachable(definitions, &paths)))
}

#[cfg(test)]
mod tests;
