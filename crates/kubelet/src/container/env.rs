//! A container's environment: service variables, `envFrom`, `env`.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_cri::v1::KeyValue;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, FileKeySelector, Pod, Secret, Service};

use super::env_file;
use super::expand::expand;
use super::fields::{self, Facts};
use crate::names;

/// Objects that environments refer to, read beforehand. `None`: it does not exist.
#[derive(Clone, Debug, Default)]
pub struct References {
    /// By name in the pod's namespace.
    pub config_maps: HashMap<String, Option<Arc<ConfigMap>>>,
    /// By name in the pod's namespace.
    pub secrets: HashMap<String, Option<Arc<Secret>>>,
    /// Where the volumes of the pod are, for environment files.
    pub volumes: HashMap<String, PathBuf>,
}

/// Names of the ConfigMaps and Secrets that a container's environment refers to.
pub fn referenced(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

/// `my-svc` → `MY_SVC`.
fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

/// Docker-links style variables of one service.
fn service_variables(service: &Service, out: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or("");
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first().filter(|_| !ip.is_empty() && ip != "None") else { return };
    let prefix = variable(service.metadata.name.as_deref().unwrap_or(""));
    out.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    out.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            out.insert(format!("{prefix}_SERVICE_PORT_{}", variable(name)), port.port.to_string());
        }
    }
    let url = |port: &k8s_openapi::api::core::v1::ServicePort| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        (format!("{protocol}://{host}:{}", port.port), protocol)
    };
    out.insert(format!("{prefix}_PORT"), url(first).0);
    for port in ports {
        let (url, protocol) = url(port);
        let key = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        out.insert(format!("{key}_PROTO"), protocol);
        out.insert(format!("{key}_PORT"), port.port.to_string());
        out.insert(format!("{key}_ADDR"), ip.to_owned());
        out.insert(key, url);
    }
}

/// Variables for the services that the pod may see: the API server's always, those of its own namespace if
/// `enableServiceLinks` is not off.
pub fn services(pod: &Pod, services: &[Arc<Service>]) -> BTreeMap<String, String> {
    let links = crate::pod::spec(pod).enable_service_links != Some(false);
    let own = names::namespace(pod);
    let mut out = BTreeMap::new();
    for service in services {
        let namespace = service.metadata.namespace.as_deref().unwrap_or("");
        let master = namespace == "default" && service.metadata.name.as_deref() == Some("kubernetes");
        if master || (links && namespace == own) {
            service_variables(service, &mut out);
        }
    }
    out
}

/// The whole environment, in the order in which the runtime sets it.
///
/// # Errors
/// Upstream's text about a missing object or key: `CreateContainerConfigError`.
pub fn environment(
    pod: &Pod,
    container: &Container,
    service_env: BTreeMap<String, String>,
    refs: &References,
    facts: &Facts,
) -> Result<Vec<KeyValue>, String> {
    let mut result: BTreeMap<String, String> = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        add_source(&mut result, source, refs)?;
    }
    let mut expanded: HashMap<String, String> = HashMap::new();
    for var in container.env.iter().flatten() {
        let lookup = |name: &str| expanded.get(name).or_else(|| service_env.get(name)).cloned();
        let Some(value) = value_of(pod, container, var, refs, facts, lookup)? else { continue };
        expanded.insert(var.name.clone(), value.clone());
        result.insert(var.name.clone(), value);
    }
    for (key, value) in service_env {
        result.entry(key).or_insert(value);
    }
    Ok(result.into_iter().map(|(key, value)| KeyValue { key, value }).collect())
}

fn add_source(
    result: &mut BTreeMap<String, String>,
    source: &k8s_openapi::api::core::v1::EnvFromSource,
    refs: &References,
) -> Result<(), String> {
    let prefix = source.prefix.as_deref().unwrap_or("");
    if let Some(r) = &source.config_map_ref {
        match refs.config_maps.get(&r.name).and_then(Option::as_ref) {
            Some(map) => {
                let data = map.data.iter().flatten();
                result.extend(data.map(|(k, v)| (format!("{prefix}{k}"), v.clone())));
            }
            None if r.optional == Some(true) => {}
            None => return Err(format!("configmap {:?} not found", r.name)),
        }
    }
    if let Some(r) = &source.secret_ref {
        match refs.secrets.get(&r.name).and_then(Option::as_ref) {
            Some(secret) => {
                let data = secret.data.iter().flatten();
                let text = |v: &[u8]| String::from_utf8_lossy(v).into_owned();
                result.extend(data.map(|(k, v)| (format!("{prefix}{k}"), text(&v.0))));
            }
            None if r.optional == Some(true) => {}
            None => return Err(format!("secret {:?} not found", r.name)),
        }
    }
    Ok(())
}

/// The value of one variable; `None` when an optional reference leads nowhere.
fn value_of(
    pod: &Pod,
    container: &Container,
    var: &EnvVar,
    refs: &References,
    facts: &Facts,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, String> {
    let Some(source) = &var.value_from else {
        return Ok(Some(expand(var.value.as_deref().unwrap_or(""), lookup)));
    };
    let namespace = names::namespace(pod);
    if let Some(f) = &source.field_ref {
        return fields::field(pod, &f.field_path, facts).map(Some);
    }
    if let Some(r) = &source.resource_field_ref {
        return fields::resource(pod, Some(container), r, facts).map(Some);
    }
    if let Some(r) = &source.config_map_key_ref {
        let optional = r.optional == Some(true);
        let Some(map) = refs.config_maps.get(&r.name).and_then(Option::as_ref) else {
            return if optional { Ok(None) } else { Err(format!("configmap {:?} not found", r.name)) };
        };
        return match map.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", r.key, r.name)),
        };
    }
    if let Some(r) = &source.file_key_ref {
        return file_value(r, refs);
    }
    if let Some(r) = &source.secret_key_ref {
        let optional = r.optional == Some(true);
        let Some(secret) = refs.secrets.get(&r.name).and_then(Option::as_ref) else {
            return if optional { Ok(None) } else { Err(format!("secret {:?} not found", r.name)) };
        };
        return match secret.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", r.key, r.name)),
        };
    }
    Ok(Some(String::new()))
}

/// A value out of a file that the pod itself has made.
fn file_value(r: &FileKeySelector, refs: &References) -> Result<Option<String>, String> {
    let volume = refs
        .volumes
        .get(&r.volume_name)
        .ok_or_else(|| format!("cannot find the volume {:?} referenced by FileKeyRef", r.volume_name))?;
    let value = env_file::read(volume, &r.path, &r.key).map_err(|error| {
        tracing::warn!(error, "environment file not read");
        "couldn't parse env file".to_owned()
    })?;
    match (value.is_empty(), r.optional == Some(true)) {
        (false, _) => Ok(Some(value)),
        (true, true) => Ok(None),
        (true, false) => Err(format!(
            "environment variable key {:?} not found in file {:?}",
            r.key,
            volume.join(&r.path).display().to_string()
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    fn env(spec: serde_json::Value, refs: &References) -> Result<BTreeMap<String, String>, String> {
        let p = pod(json!({"containers": [spec]}));
        let facts = Facts {
            node_ip: [10, 0, 0, 1].into(),
            pod_ips: vec!["10.244.0.2".into()],
            allocatable: BTreeMap::new(),
        };
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "my-db", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "pg", "port": 5432}]},
        }))
        .expect("service");
        let links = services(&p, &[Arc::new(service)]);
        let list = environment(&p, &crate::pod::spec(&p).containers[0], links, refs, &facts)?;
        Ok(list.into_iter().map(|kv| (kv.key, kv.value)).collect())
    }

    #[test]
    fn values_expand_from_earlier_variables_and_services() {
        let e = env(
            json!({"name": "a", "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)-$(MY_DB_SERVICE_PORT)-$(C)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ]}),
            &References::default(),
        )
        .expect("environment");
        assert_eq!(e["B"], "1-5432-$(C)");
        assert_eq!(e["IP"], "10.244.0.2");
        assert_eq!(e["MY_DB_PORT_5432_TCP"], "tcp://10.96.0.7:5432");
        assert_eq!(e["MY_DB_SERVICE_PORT_PG"], "5432");
    }

    #[test]
    fn references_bring_keys_with_prefix_and_missing_ones_are_named() {
        let map: ConfigMap = serde_json::from_value(json!({"data": {"k": "v"}})).expect("map");
        let mut refs = References::default();
        refs.config_maps.insert("cm".into(), Some(Arc::new(map)));
        refs.secrets.insert("none".into(), None);
        let from = json!({"name": "a", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}]});
        assert_eq!(env(from, &refs).expect("environment")["P_k"], "v");
        let missing = |source: serde_json::Value| {
            env(json!({"name": "a", "env": [{"name": "X", "valueFrom": source}]}), &refs)
        };
        assert_eq!(
            missing(json!({"configMapKeyRef": {"name": "cm", "key": "z"}})),
            Err("couldn't find key z in ConfigMap default/cm".into())
        );
        assert_eq!(
            missing(json!({"secretKeyRef": {"name": "none", "key": "z"}})),
            Err("secret \"none\" not found".into())
        );
        let optional = missing(json!({"secretKeyRef": {"name": "none", "key": "z", "optional": true}}));
        assert!(!optional.expect("environment").contains_key("X"));
    }
}
