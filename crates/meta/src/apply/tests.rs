//! Tests of managedFields and server-side apply.

use super::*;
use crate::schema::tests::{DEPLOYMENT, POD, SCHEMAS};

fn manager(name: &str, operation: Operation) -> Manager<'_> {
    let now = Timestamp::from_second(1_700_000_000).expect("time");
    Manager { name, operation, api_version: "v1", subresource: "", now }
}

fn pod(image: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "p", "namespace": "n", "labels": { "a": "b" } },
        "spec": { "restartPolicy": "Always",
            "containers": [{ "name": "c", "image": image, "resources": {},
                "ports": [{ "containerPort": 80, "protocol": "TCP" }] }] },
        "status": {} })
}

fn entries(object: &Value) -> &Vec<Value> {
    object["metadata"]["managedFields"].as_array().expect("managedFields")
}

#[test]
fn creation_owns_everything_but_what_an_empty_object_has() {
    let mut new = pod("i");
    update_managed_fields(&SCHEMAS, POD, None, &mut new, &manager("me", Operation::Update), &OneVersion);
    assert_eq!(
        *entries(&new),
        [json!({ "manager": "me", "operation": "Update", "apiVersion": "v1", "time": "2023-11-14T22:13:20Z",
            "fieldsType": "FieldsV1", "fieldsV1": {
                "f:metadata": { "f:labels": { ".": {}, "f:a": {} } },
                "f:spec": { "f:restartPolicy": {}, "f:containers": { "k:{\"name\":\"c\"}": { ".": {},
                    "f:name": {}, "f:image": {}, "f:resources": {},
                    "f:ports": { ".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {
                        ".": {}, "f:containerPort": {}, "f:protocol": {} } } } } } } })]
    );
}

#[test]
fn update_moves_changed_fields_and_keeps_other_times() {
    let mut live = pod("i");
    update_managed_fields(&SCHEMAS, POD, None, &mut live, &manager("a", Operation::Update), &OneVersion);
    let mut new = live.clone();
    new["spec"]["containers"][0]["image"] = "j".into();
    new["metadata"]["labels"]["x"] = "y".into();
    let later = Timestamp::from_second(1_700_000_100).expect("time");
    let b = Manager { now: later, ..manager("b", Operation::Update) };
    update_managed_fields(&SCHEMAS, POD, Some(&live), &mut new, &b, &OneVersion);
    let [first, second] = entries(&new).as_slice() else { panic!("two entries") };
    assert_eq!(first["time"], "2023-11-14T22:13:20Z");
    let container = &first["fieldsV1"]["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"];
    assert!(container.get("f:image").is_none() && container.get("f:name").is_some());
    assert_eq!(
        second["fieldsV1"],
        json!({ "f:metadata": { "f:labels": { "f:x": {} } },
            "f:spec": { "f:containers": { "k:{\"name\":\"c\"}": { "f:image": {} } } } })
    );
    let same = new.clone();
    update_managed_fields(
        &SCHEMAS,
        POD,
        Some(&same),
        &mut new,
        &manager("c", Operation::Update),
        &OneVersion,
    );
    assert_eq!(new, same);
}

#[test]
fn apply_reports_conflicts_and_takes_over_by_force() {
    let mut live = pod("i");
    update_managed_fields(
        &SCHEMAS,
        POD,
        None,
        &mut live,
        &manager("kubectl-run", Operation::Update),
        &OneVersion,
    );
    let config = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": { "containers": [{ "name": "c", "image": "other" }] } });
    let me = manager("me", Operation::Apply);
    let status = apply(&SCHEMAS, POD, Some(&live), &config, &me, false, &OneVersion).expect_err("conflict");
    assert_eq!(
        status.message(),
        "Apply failed with 1 conflict: conflict with \"kubectl-run\" using v1: \
            .spec.containers[name=\"c\"].image"
    );
    let forced = apply(&SCHEMAS, POD, Some(&live), &config, &me, true, &OneVersion).expect("forced");
    assert_eq!(forced["spec"]["containers"][0]["image"], "other");
    assert_eq!(
        entries(&forced)[0]["fieldsV1"],
        json!({ "f:spec": { "f:containers": {
            "k:{\"name\":\"c\"}": { ".": {}, "f:name": {}, "f:image": {} } } } })
    );
}

#[test]
fn fields_no_longer_applied_are_removed_unless_owned_by_others() {
    let config = |labels: Value| {
        let meta = json!({ "name": "d", "labels": labels });
        json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta })
    };
    let (a, b) = (manager("a", Operation::Apply), manager("b", Operation::Apply));
    let one =
        apply(&SCHEMAS, DEPLOYMENT, None, &config(json!({ "x": "1", "y": "2" })), &a, false, &OneVersion)
            .expect("new");
    let two = apply(&SCHEMAS, DEPLOYMENT, Some(&one), &config(json!({ "y": "2" })), &b, false, &OneVersion)
        .expect("shared");
    let three =
        apply(&SCHEMAS, DEPLOYMENT, Some(&two), &config(json!({})), &a, false, &OneVersion).expect("removed");
    assert_eq!(three["metadata"]["labels"], json!({ "y": "2" }));
    let four = apply(&SCHEMAS, DEPLOYMENT, Some(&three), &config(Value::Null), &b, false, &OneVersion)
        .expect("removed");
    assert!(four["metadata"].get("labels").is_none_or(|l| l == &json!({}) || l.is_null()));
}

#[test]
fn kubectl_takes_over_what_it_applied_on_the_client_side() {
    let applied = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "annotations": {} },
        "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let mut live = pod("i");
    live["metadata"]["annotations"] = json!({ LAST_APPLIED: format!("{applied}\n") });
    update_managed_fields(
        &SCHEMAS,
        POD,
        None,
        &mut live,
        &manager("kubectl-client-side-apply", Operation::Update),
        &OneVersion,
    );
    let mut config = applied;
    config["spec"]["containers"][0]["image"] = "j".into();
    let foreign = manager("other", Operation::Apply);
    assert!(apply(&SCHEMAS, POD, Some(&live), &config, &foreign, false, &OneVersion).is_err());
    let kubectl = manager("kubectl", Operation::Apply);
    let new = apply(&SCHEMAS, POD, Some(&live), &config, &kubectl, false, &OneVersion).expect("taken over");
    let text = new["metadata"]["annotations"][LAST_APPLIED].as_str().expect("annotation");
    assert!(text.contains("\"image\":\"j\""));
}

#[test]
fn configurations_that_do_not_fit_the_type_are_refused() {
    let me = manager("me", Operation::Apply);
    let check = |config: Value, expected: &str| {
        let status = apply(&SCHEMAS, POD, None, &config, &me, false, &OneVersion).expect_err("misfit");
        assert_eq!((status.code(), status.message()), (500, expected));
    };
    let head =
        |spec: Value| json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" }, "spec": spec });
    check(
        head(json!({ "nosuch": 1 })),
        "failed to create typed patch object (/p; /v1, Kind=Pod): .spec.nosuch: field not declared in schema",
    );
    check(
        head(json!({ "containers": [{ "name": "c", "env": [{ "name": "A" }, { "name": "A" }] }] })),
        "failed to create typed patch object (/p; /v1, Kind=Pod): .spec.containers[name=\"c\"].env: \
            duplicate \
         entries for key [name=\"A\"]",
    );
}

#[test]
fn user_agent_names_the_manager() {
    assert_eq!(manager_name(None, "kubectl/v1.36 (linux)"), "kubectl");
    assert_eq!(manager_name(Some("m"), "kubectl/v1.36"), "m");
}

/// Two versions of a kind without schema: `v1` says `cpu`, `v2` says `metrics`.
struct TwoVersions;

impl Versions for TwoVersions {
    fn type_name(&self, api_version: &str) -> Option<String> {
        matches!(api_version, "v1" | "v2").then(|| "none".to_owned())
    }
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value> {
        let mut out = object.clone();
        out["apiVersion"] = api_version.into();
        let (from, to) = if api_version == "v1" { ("metrics", "cpu") } else { ("cpu", "metrics") };
        if let Some(spec) = out.get_mut("spec").and_then(Value::as_object_mut)
            && let Some(value) = spec.remove(from)
        {
            spec.insert(to.to_owned(), value);
        }
        Some(out)
    }
}

#[test]
fn managers_of_other_versions_lose_what_changes_in_theirs() {
    let of = |name, api_version| Manager { api_version, ..manager(name, Operation::Update) };
    let mut live = json!({ "apiVersion": "v1", "kind": "X", "spec": { "cpu": 1, "max": 5 } });
    update_managed_fields(&SCHEMAS, "none", None, &mut live, &of("a", "v1"), &TwoVersions);
    let live = TwoVersions.convert(&live, "v2").expect("v2");
    let mut new = live.clone();
    new["spec"]["metrics"] = 2.into();
    update_managed_fields(&SCHEMAS, "none", Some(&live), &mut new, &of("b", "v2"), &TwoVersions);
    let [first, second] = entries(&new).as_slice() else { panic!("two entries") };
    assert_eq!(first["fieldsV1"], json!({ "f:spec": { ".": {}, "f:max": {} } }));
    assert_eq!(second["fieldsV1"], json!({ "f:spec": { "f:metrics": {} } }));
}

#[test]
fn what_an_applier_dropped_is_pruned_in_the_version_it_used() {
    let of = |api_version| Manager { api_version, ..manager("a", Operation::Apply) };
    let config = json!({ "apiVersion": "v2", "kind": "X", "spec": { "metrics": 1, "max": 5 } });
    let live = apply(&SCHEMAS, "none", None, &config, &of("v2"), false, &TwoVersions).expect("new");
    let live = TwoVersions.convert(&live, "v1").expect("v1");
    let config = json!({ "apiVersion": "v1", "kind": "X", "spec": { "cpu": 2 } });
    let new = apply(&SCHEMAS, "none", Some(&live), &config, &of("v1"), false, &TwoVersions).expect("applied");
    assert_eq!(new["spec"], json!({ "cpu": 2 }));
    let [only] = entries(&new).as_slice() else { panic!("one entry") };
    assert_eq!(only["apiVersion"], "v1");
}

#[test]
fn null_leaves_the_members_of_a_collection() {
    let live = pod("i");
    let config = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "labels": null } });
    let by = manager("m", Operation::Apply);
    let applied = apply(&SCHEMAS, POD, Some(&live), &config, &by, false, &OneVersion).expect("applies");
    assert_eq!(applied["metadata"]["labels"], json!({ "a": "b" }));
}

#[test]
fn a_text_with_a_format_may_be_any_scalar_and_nothing_else() {
    let text = json!({ "type": "string", "format": "date-time" });
    let definitions = json!({ "T": { "type": "object", "properties": { "at": text } } });
    let schemas = Schemas::compile(definitions.as_object().expect("definitions"));
    let told = |at: Value| misfit(&schemas, "T", &json!({ "at": at }));
    assert_eq!(told(json!(1.5)), None);
    assert!(
        told(json!({ "a": "b" }))
            .is_some_and(|why| why.contains(".at: expected any scalar, got &{map[a:b]}"))
    );
    assert!(told(json!(["a"])).is_some_and(|why| why.contains(".at: expected any scalar, got &{[a]}")));
}
