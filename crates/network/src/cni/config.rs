//! CNI configurations: which one counts, which version is spoken, what a plug-in is told.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_cri::{PodNetworkRequest, Protocol};
use coracle_meta::quantity::Quantity;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A version of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(u8, u8, u8);

impl Version {
    /// From here on there is CHECK, and DEL is told the result.
    pub const CHECK: Self = Self(0, 4, 0);
    /// From here on there are GC and STATUS.
    pub const GC: Self = Self(1, 1, 0);
    /// What is spoken here.
    const KNOWN: [Self; 5] = [Self(0, 3, 0), Self(0, 3, 1), Self::CHECK, Self(1, 0, 0), Self::GC];

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|p| p.parse::<u8>().ok());
        let version = Self(parts.next()??, parts.next()??, parts.next()??);
        Self::KNOWN.contains(&version).then_some(version)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A chain of plug-ins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The version that is spoken with its plug-ins.
    pub version: Version,
    /// CHECK is not wanted.
    pub disable_check: bool,
    /// GC is not wanted.
    pub disable_gc: bool,
    /// Plug-ins in the order of ADD.
    pub plugins: Vec<Map<String, Value>>,
}

/// The newest version of those that a configuration offers.
fn version(conf: &Value) -> Result<Version, String> {
    let more = conf["cniVersions"].as_array().into_iter().flatten();
    let offered: Vec<&str> =
        conf["cniVersion"].as_str().into_iter().chain(more.filter_map(Value::as_str)).collect();
    let known = offered.iter().filter_map(|v| Version::parse(v)).max();
    known.ok_or_else(|| format!("no CNI version of {offered:?} is supported (0.3.0 to 1.1.0)"))
}

/// Flags may be given as strings.
fn flag(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| value.as_str().is_some_and(|t| t.eq_ignore_ascii_case("true")))
}

impl NetworkList {
    /// Reads a configuration: a list, or one plug-in, which is a list of one.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let conf: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let name = conf["name"].as_str().filter(|n| !n.is_empty()).ok_or("it has no name")?.to_owned();
        let version = version(&conf)?;
        let plugins = match conf.get("plugins") {
            Some(list) => {
                let list = list.as_array().ok_or("its plugins are no list")?;
                list.iter().map(|p| p.as_object().cloned()).collect::<Option<Vec<_>>>()
            }
            None => conf.as_object().cloned().map(|only| vec![only]),
        };
        let plugins = plugins.ok_or("a plug-in of it is no object")?;
        if plugins.iter().any(|p| p.get("type").and_then(Value::as_str).unwrap_or_default().is_empty()) {
            return Err("a plug-in of it has no type".into());
        }
        let (disable_check, disable_gc) = (flag(&conf["disableCheck"]), flag(&conf["disableGC"]));
        Ok(Self { name, version, disable_check, disable_gc, plugins })
    }

    /// The first configuration of a directory that makes sense, by name; as other runtimes choose it.
    pub fn load(dir: &Path) -> Result<Self, String> {
        let mut files = configurations(dir, &["conf", "conflist", "json"]);
        files.sort();
        let mut wrong = Vec::new();
        for path in files {
            let parsed = fs::read(&path).map_err(|e| e.to_string()).and_then(|text| {
                let list = Self::parse(&text)?;
                let own = serde_json::from_slice::<Value>(&text).unwrap_or_default();
                list.with_dropped_in(dir, &own)
            });
            match parsed {
                Ok(list) if list.plugins.is_empty() => wrong.push(format!("{}: no plug-ins", path.display())),
                Ok(list) => return Ok(list),
                Err(why) => wrong.push(format!("{}: {why}", path.display())),
            }
        }
        if wrong.is_empty() {
            return Err(format!("no network config found in {}", dir.display()));
        }
        Err(format!("no usable network config in {}: {}", dir.display(), wrong.join("; ")))
    }

    /// Since 1.1.0 plug-ins may stand in files of their own, below the list's name.
    fn with_dropped_in(mut self, dir: &Path, conf: &Value) -> Result<Self, String> {
        let by_itself = conf.get("plugins").is_none() || flag(&conf["loadOnlyInlinedPlugins"]);
        if by_itself || self.version < Version::GC {
            return Ok(self);
        }
        let mut files = configurations(&dir.join(&self.name), &["conf"]);
        files.sort();
        for path in files {
            let text = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let plugin = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
            self.plugins.push(plugin);
        }
        Ok(self)
    }

    /// What a plug-in is told on its standard input.
    pub fn input(&self, plugin: &Map<String, Value>, given: &Map<String, Value>, previous: &Value) -> Value {
        let mut input = plugin.clone();
        input.insert("name".into(), self.name.clone().into());
        input.insert("cniVersion".into(), self.version.to_string().into());
        let wanted = plugin.get("capabilities").and_then(Value::as_object);
        let wanted = wanted.into_iter().flatten().filter(|(_, on)| on.as_bool() == Some(true));
        let values = wanted.filter_map(|(name, _)| Some((name.clone(), given.get(name)?.clone())));
        let values: Map<String, Value> = values.collect();
        if !values.is_empty() {
            input.insert("runtimeConfig".into(), values.into());
        }
        if !previous.is_null() {
            input.insert("prevResult".into(), previous.clone());
        }
        input.into()
    }
}

/// Files with one of these endings.
fn configurations(dir: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    entries.filter(|p| p.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e))).collect()
}

/// What plug-ins that declare it are told of the pod: host ports and bandwidth.
pub fn capabilities(request: &PodNetworkRequest) -> Map<String, Value> {
    let mut all = Map::new();
    let ports = request.port_mappings.iter().filter(|p| p.host_port != 0).map(|p| {
        json!({
            "hostPort": p.host_port,
            "containerPort": p.container_port,
            "protocol": match p.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            },
            "hostIP": p.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        })
    });
    let ports: Vec<Value> = ports.collect();
    if !ports.is_empty() {
        all.insert("portMappings".into(), ports.into());
    }
    let rate = |name: &str| {
        let text = request.annotations.get(&format!("kubernetes.io/{name}-bandwidth"))?;
        u64::try_from(Quantity::parse(text).ok()?.value()).ok().filter(|rate| *rate > 0)
    };
    let mut bandwidth = Map::new();
    for way in ["ingress", "egress"] {
        if let Some(rate) = rate(way) {
            bandwidth.insert(format!("{way}Rate"), rate.into());
            bandwidth.insert(format!("{way}Burst"), u32::MAX.into());
        }
    }
    if !bandwidth.is_empty() {
        all.insert("bandwidth".into(), bandwidth.into());
    }
    if !request.annotations.is_empty() {
        all.insert("io.kubernetes.cri.pod-annotations".into(), json!(request.annotations));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_is_known_is_spoken() {
        let spoken = |conf: Value| version(&conf).map(|v| v.to_string());
        assert_eq!(spoken(json!({"cniVersion": "1.0.0"})), Ok("1.0.0".into()));
        let many = json!({"cniVersion": "0.4.0", "cniVersions": ["1.1.0", "9.0.0"]});
        assert_eq!(spoken(many), Ok("1.1.0".into()));
        assert!(spoken(json!({"cniVersion": "0.2.0"})).is_err());
    }

    #[test]
    fn the_first_usable_file_by_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        let load = || NetworkList::load(dir.path()).map(|l| l.name);
        assert!(load().unwrap_err().starts_with("no network config found in "));
        fs::write(dir.path().join("10-a.conf"), "{").unwrap();
        assert!(load().unwrap_err().contains("10-a.conf"));
        let list = r#"{"name": "b", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}"#;
        fs::write(dir.path().join("20-b.conflist"), list).unwrap();
        fs::write(dir.path().join("00-c.txt"), list.replace("\"b\"", "\"c\"")).unwrap();
        assert_eq!(load().unwrap(), "b");
        let one = r#"{"name": "d", "cniVersion": "1.0.0", "type": "ptp"}"#;
        fs::write(dir.path().join("15-d.conf"), one).unwrap();
        assert_eq!(load().unwrap(), "d");
    }

    #[test]
    fn plugins_in_files_of_their_own_join_the_list_since_1_1() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("n")).unwrap();
        fs::write(dir.path().join("n/10.conf"), r#"{"type": "tuning"}"#).unwrap();
        for (version, more, count) in
            [("1.1.0", "", 2), ("1.0.0", "", 1), ("1.1.0", r#""loadOnlyInlinedPlugins": true,"#, 1)]
        {
            let list = format!(
                r#"{{"name": "n", {more} "cniVersion": "{version}", "plugins": [{{"type": "bridge"}}]}}"#
            );
            fs::write(dir.path().join("1.conflist"), list).unwrap();
            assert_eq!(NetworkList::load(dir.path()).unwrap().plugins.len(), count, "{version} {more}");
        }
    }

    #[test]
    fn a_plugin_is_told_what_it_declares_and_what_came_before() {
        let text = br#"{"name": "n", "cniVersion": "1.0.0", "plugins": [
            {"type": "bridge"}, {"type": "portmap", "capabilities": {"portMappings": true, "ips": false}}]}"#;
        let list = NetworkList::parse(text).unwrap();
        let given = json!({"portMappings": [1], "ips": [2], "bandwidth": 3});
        let given = given.as_object().unwrap();
        let first = list.input(&list.plugins[0], given, &Value::Null);
        assert_eq!(first, json!({"type": "bridge", "name": "n", "cniVersion": "1.0.0"}));
        let second = list.input(&list.plugins[1], given, &json!({"ips": []}));
        assert_eq!(second["runtimeConfig"], json!({"portMappings": [1]}));
        assert_eq!(second["prevResult"], json!({"ips": []}));
    }
}
