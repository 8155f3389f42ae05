//! Which devices claims get, on one node.

use serde_json::{Value, json};

use super::*;
use crate::plugins::testing::node;

fn class(name: &str, selector: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "selectors": [{ "cel": { "expression": selector } }] } })
}

/// A slice of the driver `gpu.example.com` on node `n`; devices are given by name and what is special about them.
fn slice(name: &str, devices: &[(&str, Value)]) -> Value {
    let devices: Vec<Value> = devices
        .iter()
        .map(|(name, extra)| {
            let mut device = json!({ "name": name });
            for (key, value) in extra.as_object().into_iter().flatten() {
                device[key] = value.clone();
            }
            device
        })
        .collect();
    json!({ "metadata": { "name": name }, "spec": { "driver": "gpu.example.com", "nodeName": "n", "devices": devices,
        "pool": { "name": "pool", "generation": 1, "resourceSliceCount": 1 } } })
}

fn model(model: &str, numa: i64) -> Value {
    json!({ "attributes": { "model": { "string": model }, "numa": { "int": numa } } })
}

fn claim(name: &str, devices: Value) -> Arc<ResourceClaim> {
    let claim = json!({ "metadata": { "name": name, "namespace": "default", "uid": name }, "spec": { "devices": devices } });
    Arc::new(serde_json::from_value(claim).expect("a claim"))
}

/// A claim of one request.
fn exactly(name: &str, request: Value) -> Arc<ResourceClaim> {
    let mut request = request;
    request["deviceClassName"] = "gpu".into();
    claim(name, json!({ "requests": [{ "name": "r", "exactly": request }] }))
}

fn world(slices: &[Value]) -> Devices {
    let mut devices = Devices::default();
    let gpus = class("gpu", "device.driver == 'gpu.example.com'");
    devices.set_class(Arc::new(serde_json::from_value(gpus).expect("a class")));
    for slice in slices {
        devices.set_slice(Arc::new(serde_json::from_value(slice.clone()).expect("a slice")));
    }
    devices
}

/// What a claim gets: `request=device`.
fn got(devices: &Devices, claim: &Arc<ResourceClaim>) -> Result<Option<Vec<String>>, String> {
    let node = node("n", json!({}));
    let results = allocate(devices, &devices.allocated(), std::slice::from_ref(claim), &node)?;
    Ok(results.map(|results| {
        let devices =
            results[0].devices.as_ref().and_then(|devices| devices.results.as_deref()).unwrap_or(&[]);
        devices.iter().map(|result| format!("{}={}", result.request, result.device)).collect()
    }))
}

fn some(list: &[&str]) -> Result<Option<Vec<String>>, String> {
    Ok(Some(list.iter().map(|text| (*text).to_owned()).collect()))
}

fn take(devices: &mut Devices, claim: &Arc<ResourceClaim>) {
    let node = node("n", json!({}));
    let results = allocate(devices, &devices.allocated(), std::slice::from_ref(claim), &node);
    let results = results.expect("no error").expect("devices");
    devices.assume(claim, results.into_iter().next().expect("a result"));
}

#[test]
fn class_and_request_select_and_each_device_is_given_once() {
    let mut devices = world(&[slice("s", &[("a", model("small", 0)), ("b", model("large", 0))])]);
    let large = json!({ "selectors": [{ "cel": { "expression":
        "device.attributes['gpu.example.com'].model == 'large'" } }] });
    let first = exactly("first", large.clone());
    assert_eq!(got(&devices, &first), some(&["r=b"]));
    take(&mut devices, &first);
    assert_eq!(got(&devices, &exactly("second", large)), Ok(None));
    assert_eq!(got(&devices, &exactly("third", json!({}))), some(&["r=a"]));
    assert_eq!(got(&devices, &exactly("two", json!({ "count": 2 }))), Ok(None));
    assert_eq!(got(&devices, &exactly("watcher", json!({ "adminAccess": true }))), some(&["r=a"]));
    devices.forget(&first);
    assert_eq!(got(&devices, &exactly("two", json!({ "count": 2 }))), some(&["r=a", "r=b"]));
    let broken = json!({ "selectors": [{ "cel": { "expression": "device.attributes['x.y'].z == 1" } }] });
    let why = got(&devices, &exactly("broken", broken)).expect_err("an error");
    assert_eq!(why, "claim default/broken: selector #0: CEL runtime error: no such key: z");
}

#[test]
fn constraints_are_kept_by_looking_further() {
    let devices = world(&[slice("s", &[("a", model("m", 0)), ("b", model("m", 1)), ("c", model("m", 1))])]);
    let pair = |constraint: Value| {
        claim(
            "c",
            json!({ "constraints": [constraint],
            "requests": [{ "name": "r", "exactly": { "deviceClassName": "gpu", "count": 2 } }] }),
        )
    };
    let same = pair(json!({ "matchAttribute": "gpu.example.com/numa" }));
    assert_eq!(got(&devices, &same), some(&["r=b", "r=c"]));
    let differ = pair(json!({ "distinctAttribute": "gpu.example.com/numa" }));
    assert_eq!(got(&devices, &differ), some(&["r=a", "r=b"]));
    assert_eq!(got(&devices, &pair(json!({ "matchAttribute": "gpu.example.com/none" }))), Ok(None));
    let others = pair(json!({ "matchAttribute": "gpu.example.com/numa", "requests": ["other"] }));
    assert_eq!(got(&devices, &others), some(&["r=a", "r=b"]));
}

#[test]
fn the_first_alternative_that_can_be_had_is_taken() {
    let mut devices = world(&[slice("s", &[("a", model("small", 0)), ("b", model("large", 0))])]);
    let way = |name: &str, model: &str| {
        let expression = format!("device.attributes['gpu.example.com'].model == '{model}'");
        json!({ "name": name, "deviceClassName": "gpu", "selectors": [{ "cel": { "expression": expression } }] })
    };
    let either = claim(
        "either",
        json!({ "requests": [{ "name": "r",
        "firstAvailable": [way("best", "large"), way("good", "small")] }] }),
    );
    assert_eq!(got(&devices, &either), some(&["r/best=b"]));
    take(&mut devices, &either);
    let mut again = (*either).clone();
    again.metadata.uid = Some("again".to_owned());
    assert_eq!(got(&devices, &Arc::new(again)), some(&["r/good=a"]));
}

#[test]
fn all_devices_are_all_or_none_and_tainted_ones_must_be_tolerated() {
    let tainted = json!({ "taints": [{ "key": "broken", "effect": "NoSchedule" }] });
    let devices = world(&[slice("s", &[("a", json!({})), ("b", tainted)])]);
    let all = json!({ "allocationMode": "All" });
    assert_eq!(got(&devices, &exactly("all", all)), Ok(None));
    let tolerant = json!({ "allocationMode": "All", "tolerations": [{ "operator": "Exists" }] });
    assert_eq!(got(&devices, &exactly("all", tolerant)), some(&["r=a", "r=b"]));
    assert_eq!(got(&devices, &exactly("one", json!({ "count": 2 }))), Ok(None));
    let none = world(&[]);
    assert_eq!(got(&none, &exactly("all", json!({ "allocationMode": "All" }))), Ok(None));
}

#[test]
fn parts_of_a_device_share_its_counters() {
    let part = |amount: &str| json!({ "consumesCounters": [{ "counterSet": "gpu0", "counters": { "memory": { "value": amount } } }] });
    let mut parts =
        slice("s", &[("whole", part("40Gi")), ("half-a", part("20Gi")), ("half-b", part("20Gi"))]);
    parts["spec"]["pool"]["resourceSliceCount"] = 2.into();
    let mut counters = slice("t", &[]);
    counters["spec"]["sharedCounters"] =
        json!([{ "name": "gpu0", "counters": { "memory": { "value": "40Gi" } } }]);
    counters["spec"]["pool"]["resourceSliceCount"] = 2.into();
    let mut devices = world(&[parts.clone(), counters]);
    assert_eq!(got(&devices, &exactly("two", json!({ "count": 2 }))), some(&["r=half-a", "r=half-b"]));
    take(&mut devices, &exactly("whole", json!({})));
    assert_eq!(got(&devices, &exactly("more", json!({}))), Ok(None), "nothing is left beside the whole");
    let incomplete = world(&[parts]);
    assert_eq!(got(&incomplete, &exactly("one", json!({}))), Ok(None), "a slice is missing");
}

#[test]
fn claims_share_a_device_as_far_as_its_capacity_goes() {
    let shared = json!({ "allowMultipleAllocations": true, "capacity": { "memory": { "value": "10Gi" } } });
    let mut devices = world(&[slice("s", &[("a", shared)])]);
    let wants =
        |name: &str, memory: &str| exactly(name, json!({ "capacity": { "requests": { "memory": memory } } }));
    take(&mut devices, &wants("first", "6Gi"));
    assert_eq!(got(&devices, &wants("second", "5Gi")), Ok(None));
    assert_eq!(got(&devices, &wants("third", "4Gi")), some(&["r=a"]));
}

#[test]
fn only_the_newest_slices_of_a_pool_count_and_names_must_not_repeat() {
    let mut newer = slice("t", &[("new", json!({}))]);
    newer["spec"]["pool"]["generation"] = 2.into();
    let devices = world(&[slice("s", &[("old", json!({}))]), newer]);
    assert_eq!(got(&devices, &exactly("one", json!({}))), some(&["r=new"]));
    let twice = world(&[slice("s", &[("a", json!({})), ("a", json!({}))])]);
    let why = got(&twice, &exactly("one", json!({}))).expect_err("an error");
    assert_eq!(why, "invalid resource pools were encountered");
}

#[test]
fn the_result_says_where_pods_can_run_and_how_devices_are_set_up() {
    let local = slice("s", &[("a", json!({}))]);
    let mut everywhere = local.clone();
    everywhere["spec"]["nodeName"] = Value::Null;
    everywhere["spec"]["allNodes"] = true.into();
    let result = |slice: Value| {
        let mut devices = world(&[slice]);
        let opaque = json!({ "driver": "gpu.example.com", "parameters": {} });
        let configured =
            json!({ "metadata": { "name": "gpu" }, "spec": { "config": [{ "opaque": opaque }] } });
        devices.set_class(Arc::new(serde_json::from_value(configured).expect("a class")));
        let claim = claim(
            "c",
            json!({
            "requests": [{ "name": "r", "exactly": { "deviceClassName": "gpu" } }],
            "config": [{ "requests": ["r"], "opaque": opaque }, { "requests": ["other"], "opaque": opaque }] }),
        );
        let results = allocate(&devices, &devices.allocated(), &[claim], &node("n", json!({})));
        serde_json::to_value(&results.expect("no error").expect("devices")[0]).expect("JSON")
    };
    let here = json!({ "nodeSelectorTerms": [{ "matchFields":
        [{ "key": "metadata.name", "operator": "In", "values": ["n"] }] }] });
    let result_here = result(local);
    assert_eq!(result_here["nodeSelector"], here);
    let config = result_here["devices"]["config"].as_array().expect("configuration").clone();
    let sources: Vec<&Value> = config.iter().map(|config| &config["source"]).collect();
    assert_eq!(sources, ["FromClass", "FromClaim"]);
    assert_eq!(config[0]["requests"], json!(["r"]));
    assert_eq!(result(everywhere)["nodeSelector"], Value::Null);
}
