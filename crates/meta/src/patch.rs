//! The three patch formats: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7386), strategic merge patch.
//!
//! All change the value in place; error texts and quirks are upstream's.

pub(crate) mod go_fmt;
mod json;
mod strategic;

use serde_json::{Map, Value};

use crate::Status;
use crate::schema::Schemas;

pub use json::{json_patch, json_patch_operations};

/// Applies an RFC 7386 merge patch: nulls delete, objects merge, all else replaces. Objects within new lists lose
/// their nulls, too, as upstream's library has it.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(key);
                } else {
                    merge_patch(target.entry(key.as_str()).or_insert(Value::Null), value);
                }
            }
        }
        // What takes an object's place stays as it was sent.
        (target @ Value::Object(_), patch) => *target = patch.clone(),
        (target, patch) => *target = without_nulls(patch),
    }
}

/// The value without nulls in its objects.
pub(crate) fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, value)| !value.is_null());
            kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// Applies a strategic merge patch to an object of the named type: lists merge by their merge keys;
/// `$patch`, `$retainKeys`, `$setElementOrder/…` and `$deleteFromPrimitiveList/…` are understood.
///
/// # Errors
/// Upstream's message (a 500 without a reason) for a malformed patch. `target` is then half changed.
pub fn strategic_merge_patch(
    target: &mut Value,
    patch: &Value,
    schemas: &Schemas,
    type_name: &str,
) -> Result<(), Status> {
    strategic::apply(target, patch, schemas, type_name)
}

/// How messages show a strategic merge patch to such an object: what upstream's merge leaves of it.
pub fn left_of_strategic(target: &Value, patch: &Value, schemas: &Schemas, type_name: &str) -> Value {
    strategic::left(target, patch, schemas, type_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::{DEPLOYMENT, POD, SCHEMAS};
    use serde_json::json;

    fn strategic(mut target: Value, patch: Value) -> Result<Value, String> {
        let outcome = strategic_merge_patch(&mut target, &patch, &SCHEMAS, POD);
        outcome.map(|()| target).map_err(|e| e.message().to_owned())
    }

    #[track_caller]
    fn check(target: Value, patch: Value, expected: Value) {
        assert_eq!(strategic(target, patch), Ok(expected));
    }

    #[test]
    fn merge_patch_follows_the_rfc() {
        let mut value = json!({ "a": { "b": 1, "c": 2 }, "d": [1] });
        merge_patch(&mut value, &json!({ "a": { "b": null, "e": { "f": null } }, "d": { "x": 1 } }));
        assert_eq!(value, json!({ "a": { "c": 2, "e": {} }, "d": { "x": 1 } }));
        merge_patch(
            &mut value,
            &json!({ "a": [null], "d": null, "l": [{ "x": null, "y": [{ "z": null }] }, null] }),
        );
        assert_eq!(value, json!({ "a": [null], "l": [{ "y": [{}] }, null] }));
    }

    #[test]
    fn containers_merge_by_name_and_new_ones_come_first() {
        check(
            json!({ "spec": { "containers": [{ "name": "a", "image": "1", "args": ["x"] }] } }),
            json!({ "spec": { "containers": [
                { "name": "b", "tty": null }, { "name": "a", "args": ["y"] }] } }),
            json!({ "spec": { "containers": [
                { "name": "b" }, { "name": "a", "image": "1", "args": ["y"] }] } }),
        );
    }

    #[test]
    fn directives_delete_replace_and_order() {
        let target = json!({ "metadata": { "finalizers": ["x/a", "x/b"] },
            "spec": { "containers": [{ "name": "a" }, { "name": "b" }, { "name": "c" }],
                "nodeSelector": { "k": "v" } } });
        check(
            target.clone(),
            json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["x/a"], "finalizers": ["x/c"] },
                "spec": { "containers": [{ "name": "b", "$patch": "delete" }],
                    "$setElementOrder/containers": [{ "name": "c" }, { "name": "a" }],
                    "nodeSelector": { "$patch": "replace", "n": "w" } } }),
            json!({ "metadata": { "finalizers": ["x/c", "x/b"] },
                "spec": { "containers": [{ "name": "c" }, { "name": "a" }], "nodeSelector": { "n": "w" } } }),
        );
        check(
            target,
            json!({ "spec": { "containers": [{ "$patch": "replace" }, { "name": "z" }] } }),
            json!({ "metadata": { "finalizers": ["x/a", "x/b"] },
                "spec": { "containers": [{ "name": "z" }], "nodeSelector": { "k": "v" } } }),
        );
    }

    #[test]
    fn messages_show_what_the_merge_leaves_of_a_patch() {
        let target = json!({ "spec": { "containers": [{ "name": "a", "image": "x" }], "hostPID": true } });
        let patch = json!({ "spec": { "hostPID": { "a": null }, "hostname": null, "priority": { "b": [{ "c": null }] },
            "$setElementOrder/containers": [{ "name": "a" }],
            "containers": [{ "name": "a", "image": { "x": null }, "tty": null }, { "name": "b", "tty": { "y": null } }] } });
        let left = left_of_strategic(&target, &patch, &SCHEMAS, POD);
        let wanted = json!({ "spec": { "hostPID": {}, "hostname": null, "priority": { "b": [{}] },
            "containers": [{ "name": "a", "image": {}, "tty": null }, { "name": "b", "tty": { "y": null } }] } });
        assert_eq!(left, wanted);
    }

    #[test]
    fn retain_keys_drops_the_other_members_of_a_union() {
        let mut target = json!({ "spec": { "strategy": {
            "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1 } } } });
        let patch = json!({ "spec": { "strategy": { "$retainKeys": ["type"], "type": "Recreate" } } });
        strategic_merge_patch(&mut target, &patch, &SCHEMAS, DEPLOYMENT).expect("valid");
        assert_eq!(target, json!({ "spec": { "strategy": { "type": "Recreate" } } }));
    }

    #[test]
    fn malformed_patches_have_upstream_messages() {
        let target = json!({ "spec": { "containers": [{ "name": "a" }] } });
        let message = |patch| strategic(target.clone(), patch).expect_err("malformed");
        assert_eq!(
            message(json!({ "spec": { "containers": [{ "image": "x" }] } })),
            "map: map[image:x] does not contain declared merge key: name"
        );
        assert_eq!(
            message(json!({ "spec": { "$patch": "frob" } })),
            "unknown patch type: frob in map: map[$patch:frob]"
        );
        assert_eq!(
            message(json!({ "spec": { "$setElementOrder/containers": "x" } })),
            "expected a []interface {}, but received a string"
        );
        assert_eq!(
            message(json!({ "spec": { "$setElementOrder/containers": [{ "name": "s" }],
                "containers": [{ "name": "c", "image": "new" }] } })),
            "The order in patch list:\n[map[image:new name:c]]\n doesn't match $setElementOrder \
                list:\n[map[name:s]]\n"
        );
    }

    #[test]
    fn json_patch_applies_operations_in_order() {
        let mut value = json!({ "a": { "x/y": 1 }, "l": [1, 2, 3] });
        let patch = json!([
            { "op": "test", "path": "/a/x~1y", "value": 1 }, { "op": "test", "path": "/nope", "value": null },
            { "op": "move", "from": "/a/x~1y", "path": "/b" }, { "op": "copy", "from": "/b", "path": "/l/-" },
            { "op": "remove", "path": "/l/-1" }, { "op": "add", "path": "/l/0", "value": 0 },
            { "op": "replace", "path": "/new", "value": "n" },
        ]);
        json_patch(&mut value, &patch).expect("valid");
        assert_eq!(value, json!({ "a": {}, "b": 1, "l": [0, 1, 2, 3], "new": "n" }));
        // What stands before the first slash is not looked at.
        json_patch(&mut value, &json!([{ "op": "add", "path": "x/c", "value": 1 }])).expect("valid");
        assert_eq!(value["c"], 1);
        for bad in [
            json!([{ "op": "add", "path": "", "value": {} }]),
            json!([{ "op": "test", "path": "/b", "value": 2 }]),
            json!([{ "op": "add", "path": "/x/y", "value": 2 }]),
            json!([{ "op": "remove", "path": "/l/9" }]),
            json!([{ "op": "add", "value": 2 }]),
        ] {
            let status = json_patch(&mut value, &bad).expect_err("bad");
            assert_eq!(status.code(), 422);
            assert_eq!(status.message(), "the server rejected our request due to an error in our request");
        }
    }
}
