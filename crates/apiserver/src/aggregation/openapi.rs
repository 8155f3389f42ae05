//! OpenAPI with extension servers: their documents in the index of v3, their paths and types in v2.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Extension;
use crate::server::Server;

const DEFINITION: &str = "#/definitions/";

/// Adds the documents of extension servers to the index of v3.
pub(crate) fn index(server: &Server, index: &mut Value) {
    let routes = server.aggregation.routes();
    let Some(paths) = index["paths"].as_object_mut() else { return };
    for extension in routes.extensions() {
        let key = format!("apis/{}/{}", extension.group, extension.version);
        let learned = extension.learned.read();
        let found = learned.v3.as_ref().and_then(|v3| v3.value["paths"].get(&key));
        match found {
            Some(entry) => drop(paths.insert(key, entry.clone())),
            None => drop(paths.remove(&key)),
        }
    }
}

/// The extension server that has the v3 document of a path such as `apis/GROUP/VERSION`.
pub(crate) fn routed(server: &Server, key: &str) -> Option<Arc<Extension>> {
    let (group, version) = key.strip_prefix("apis/")?.split_once('/')?;
    server.aggregation.route(group, version)
}

/// Adds the paths of extension servers, and the types that they use, to the document of v2.
pub(crate) fn merge(server: &Server, document: &mut Value) {
    for extension in server.aggregation.routes().extensions() {
        let of = extension.learned.read().v2.as_ref().map(|v2| v2.value.clone());
        if let Some(of) = of {
            add(document, &of, &format!("/apis/{}/{}/", extension.group, extension.version));
        }
    }
}

/// Adds what `from` has below `prefix`. A type that is another one by the same name gets a number.
fn add(document: &mut Value, from: &Value, prefix: &str) {
    let below = |path: &&String| path.starts_with(prefix) || **path == prefix[..prefix.len() - 1];
    let all = from["paths"].as_object().into_iter().flatten();
    let mut paths: Map<String, Value> =
        all.filter(|(path, _)| below(path)).map(|(path, item)| (path.clone(), item.clone())).collect();
    let mut used = BTreeSet::new();
    paths.values().for_each(|item| references(item, &mut used));
    let types = from["definitions"].as_object();
    let mut todo: Vec<String> = used.iter().cloned().collect();
    while let Some(name) = todo.pop() {
        let mut more = BTreeSet::new();
        types.and_then(|t| t.get(&name)).inspect(|t| references(t, &mut more));
        todo.extend(more.into_iter().filter(|name| used.insert(name.clone())));
    }
    let mut renamed: Vec<(String, String)> = Vec::new();
    for name in &used {
        let Some(own) = types.and_then(|t| t.get(name)) else { continue };
        if document["definitions"].get(name).is_some_and(|known| known != own) {
            let free = |n: &u32| document["definitions"].get(format!("{name}_v{n}")).is_none();
            let number = (2..).find(free).unwrap_or(2);
            renamed.push((name.clone(), format!("{name}_v{number}")));
        }
    }
    for name in used {
        let Some(mut own) = types.and_then(|t| t.get(&name)).cloned() else { continue };
        rename(&mut own, &renamed);
        let name = renamed.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| new.clone());
        document["definitions"][name] = own;
    }
    for (path, mut item) in std::mem::take(&mut paths) {
        rename(&mut item, &renamed);
        document["paths"][path] = item;
    }
}

/// The names of the types that a value refers to.
fn references(value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(name) =
                map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(DEFINITION))
            {
                out.insert(name.to_owned());
            }
            map.values().for_each(|v| references(v, out));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, out)),
        _ => {}
    }
}

fn rename(value: &mut Value, names: &[(String, String)]) {
    if names.is_empty() {
        return;
    }
    match value {
        Value::Object(map) => {
            let to = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(DEFINITION));
            if let Some((_, new)) = to.and_then(|to| names.iter().find(|(old, _)| old == to)) {
                map.insert("$ref".into(), json!(format!("{DEFINITION}{new}")));
            }
            map.values_mut().for_each(|v| rename(v, names));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| rename(v, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_version_come_with_their_types_and_another_type_keeps_its_name() {
        let mut own =
            json!({ "paths": { "/api": {} }, "definitions": { "Same": { "a": 1 }, "Other": { "a": 1 } } });
        let to = |name: &str| json!({ "$ref": format!("#/definitions/{name}") });
        let theirs = json!({
            "paths": { "/apis/g/v1/x": { "get": to("Top") }, "/apis/g/v2/x": { "get": to("Unused") }, "/version": {} },
            "definitions": {
                "Top": { "same": to("Same"), "other": to("Other") }, "Same": { "a": 1 }, "Other": { "a": 2 },
                "Unused": {},
            },
        });
        add(&mut own, &theirs, "/apis/g/v1/");
        let names: Vec<&String> = own["paths"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["/api", "/apis/g/v1/x"]);
        assert_eq!(own["definitions"]["Other"], json!({ "a": 1 }));
        assert_eq!(own["definitions"]["Other_v2"], json!({ "a": 2 }));
        assert_eq!(own["definitions"]["Top"]["other"], to("Other_v2"));
        assert!(own["definitions"].get("Unused").is_none());
    }
}
