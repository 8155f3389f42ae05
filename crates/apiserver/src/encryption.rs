//! Encryption of stored values, as an EncryptionConfiguration asks for it. Follows
//! <https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/>; stored values begin as upstream's do
//! (`k8s:enc:aesgcm:v1:<key>:`), and are bound to their keys where the cipher can do that.

mod ciphers;
mod config;
mod kms;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use coracle_store::{Opened, Seal};
use parking_lot::RwLock;

use self::ciphers::Cipher;
use self::config::{Provider, parse};
use self::kms::Kms;

/// What all encrypted values begin with.
const MARK: &[u8] = b"k8s:enc:";

/// A list of keys of one kind, the first of which encrypts.
struct Keys {
    /// What values of this kind begin with.
    prefix: &'static str,
    /// Names and ciphers.
    keys: Vec<(String, Cipher)>,
    /// What is said when none of the keys has the name.
    unknown: &'static str,
}

enum Transformer {
    Identity,
    Keys(Keys),
    Kms(Arc<Kms>),
}

/// The transformers of a resource; the first is for writing.
type Transformers = Vec<Arc<Transformer>>;

/// Transformers by what they are for.
#[derive(Default)]
struct Table {
    /// Of one resource: `<group or core>/<resource>`, as keys have it.
    resources: HashMap<String, Transformers>,
    /// Of the other resources of a group.
    groups: HashMap<String, Transformers>,
    /// Of all others.
    all: Option<Transformers>,
    /// The plugins among them.
    plugins: Vec<Arc<Kms>>,
}

/// Encrypts and decrypts by the configuration in force.
pub struct Encryption {
    table: RwLock<Table>,
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encryption").finish_non_exhaustive()
    }
}

impl Encryption {
    /// The configuration of a file's text (YAML or JSON, `apiserver.config.k8s.io/v1` EncryptionConfiguration).
    ///
    /// # Errors
    /// What is wrong with it, in upstream's words. Never a secret.
    pub fn new(text: &str) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Self { table: RwLock::new(table(text)?) }))
    }

    /// Puts another configuration in force: what is written from now on is encrypted by it. Waits for the first word
    /// of plugins, up to their timeouts.
    ///
    /// # Errors
    /// As [`Encryption::new`], or a plugin that is not well; what was in force stays so.
    pub fn replace(&self, text: &str) -> Result<(), String> {
        let table = table(text)?;
        if let Some(why) = table.plugins.iter().find_map(|plugin| plugin.trouble()) {
            return Err(format!("health check for new transformers failed: {why}"));
        }
        *self.table.write() = table;
        Ok(())
    }

    /// What is wrong with the KMS plugins; `None` when there are none, and nothing in the list when they are well.
    /// Waits for plugins that were not heard of yet, up to their timeouts.
    pub fn plugins_troubles(&self) -> Option<Vec<String>> {
        let plugins = self.table.read().plugins.clone();
        let troubles = plugins.iter().filter_map(|plugin| plugin.trouble()).collect();
        (!plugins.is_empty()).then_some(troubles)
    }

    fn transformers<T>(&self, key: &str, with: impl FnOnce(Option<&Transformers>) -> T) -> T {
        let table = self.table.read();
        with(table.of(key))
    }
}

impl Table {
    fn of(&self, key: &str) -> Option<&Transformers> {
        let below = key.strip_prefix("/registry/")?;
        let slash = below.find('/')?;
        let end = slash + 1 + below[slash + 1..].find('/')?;
        self.resources.get(&below[..end]).or_else(|| self.groups.get(&below[..slash])).or(self.all.as_ref())
    }

    /// The transformers of what a configuration names, to be added to.
    fn entry(&mut self, (group, resource): (String, String)) -> &mut Transformers {
        let group = if group.is_empty() { "core".to_owned() } else { group };
        match (group.as_str(), resource.as_str()) {
            ("*", "*") => self.all.get_or_insert_default(),
            (_, "*") => self.groups.entry(group).or_default(),
            _ => self.resources.entry([&group, "/", &resource].concat()).or_default(),
        }
    }

    /// The rule, if there is one already, that leaves nothing to another for this name.
    fn masking(&self, (group, _): &(String, String)) -> Option<(String, String)> {
        let of_group = if group.is_empty() { "core" } else { group };
        if self.groups.contains_key(of_group) {
            return Some((group.clone(), "*".to_owned()));
        }
        self.all.is_some().then(|| ("*".to_owned(), "*".to_owned()))
    }
}

/// `secrets`, `deployments.apps`, `*.apps`, `*.`, `*.*`.
fn parse_resource(text: &str) -> (String, String) {
    let (resource, group) = text.split_once('.').unwrap_or((text, ""));
    (group.to_owned(), resource.to_owned())
}

/// A group and resource as the file names them.
fn shown((group, resource): &(String, String)) -> String {
    match (group.as_str(), resource.as_str()) {
        ("", "*") => "*.".to_owned(),
        ("", resource) => resource.to_owned(),
        (group, resource) => format!("{resource}.{group}"),
    }
}

fn table(text: &str) -> Result<Table, String> {
    let config = parse(text).map_err(|why| format!("error while parsing file: {why}"))?;
    let mut table = Table::default();
    for entry in config {
        let made: Result<Transformers, String> = entry.providers.into_iter().map(transformer).collect();
        let made = made.map_err(|why| format!("error while building transformers: {why}"))?;
        table.plugins.extend(made.iter().filter_map(|transformer| match &**transformer {
            Transformer::Kms(kms) => Some(kms.clone()),
            _ => None,
        }));
        for resource in &entry.resources {
            let name = parse_resource(resource);
            if let Some(masking) = table.masking(&name) {
                let (name, masking) = (shown(&name), shown(&masking));
                return Err(format!(
                    "error while building transformers: resource {name:?} is masked by earlier rule {masking:?}"
                ));
            }
            table.entry(name).extend(made.iter().cloned());
        }
    }
    Ok(table)
}

fn transformer(provider: Provider) -> Result<Arc<Transformer>, String> {
    let aes = "no matching key was found for the provided AES transformer";
    let keys = match provider {
        Provider::Identity => return Ok(Arc::new(Transformer::Identity)),
        Provider::Kms(config) => return Kms::start(config).map(|kms| Arc::new(Transformer::Kms(kms))),
        Provider::AesGcm(keys) => keys_of("k8s:enc:aesgcm:v1:", aes, keys, Cipher::gcm)?,
        Provider::AesCbc(keys) => keys_of("k8s:enc:aescbc:v1:", aes, keys, Cipher::cbc)?,
        Provider::Secretbox(keys) => {
            let unknown = "no matching key was found for the provided Secretbox transformer";
            keys_of("k8s:enc:secretbox:v1:", unknown, keys, Cipher::secretbox)?
        }
    };
    Ok(Arc::new(Transformer::Keys(keys)))
}

fn keys_of(
    prefix: &'static str,
    unknown: &'static str,
    keys: Vec<(String, Vec<u8>)>,
    make: fn(&[u8]) -> Option<Cipher>,
) -> Result<Keys, String> {
    let cipher = |(name, key): (String, Vec<u8>)| {
        let why = format!("error while creating cipher for named key {name}");
        Ok((name, make(&key).ok_or(why)?))
    };
    Ok(Keys { prefix, unknown, keys: keys.into_iter().map(cipher).collect::<Result<_, String>>()? })
}

impl Keys {
    fn seal(&self, key: &str, value: &[u8]) -> Result<Bytes, String> {
        let (name, cipher) = self.keys.first().ok_or("no keys")?;
        let head = [self.prefix, name, ":"].concat();
        cipher.seal(head.into_bytes(), value, key.as_bytes()).map(Bytes::from)
    }

    /// The value, and whether another key than the first encrypted it. `stored` is without the prefix.
    fn open(&self, key: &str, stored: &[u8]) -> Result<Opened, String> {
        let mut why = self.unknown.to_owned();
        for (i, (name, cipher)) in self.keys.iter().enumerate() {
            let rest = stored.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b":"));
            match rest.map(|rest| cipher.open(rest, key.as_bytes())) {
                Some(Ok(value)) => return Ok(Opened { value: value.into(), stale: i != 0 }),
                Some(Err(e)) => why = e,
                None => {}
            }
        }
        Err(why)
    }
}

impl Seal for Encryption {
    fn covers(&self, key: &str) -> bool {
        self.transformers(key, |found| found.is_some())
    }

    fn seal(&self, key: &str, value: &[u8]) -> Result<Option<Bytes>, String> {
        self.transformers(key, |found| match found.and_then(|list| list.first()).map(|first| &**first) {
            Some(Transformer::Keys(keys)) => keys.seal(key, value).map(Some),
            Some(Transformer::Kms(kms)) => kms.seal(key, value).map(Some),
            Some(Transformer::Identity) | None => Ok(None),
        })
    }

    fn open(&self, key: &str, stored: &Bytes) -> Result<Opened, String> {
        let encrypted = stored.starts_with(MARK);
        self.transformers(key, |found| {
            let Some(list) = found else {
                let why = "identity transformer tried to read encrypted data";
                return if encrypted {
                    Err(why.into())
                } else {
                    Ok(Opened { value: stored.clone(), stale: false })
                };
            };
            let mut why = "no matching prefix found".to_owned();
            for (i, transformer) in list.iter().enumerate() {
                let opened = match &**transformer {
                    Transformer::Identity if !encrypted => {
                        return Ok(Opened { value: stored.clone(), stale: i != 0 });
                    }
                    Transformer::Identity => continue,
                    Transformer::Keys(keys) => {
                        let Some(rest) = stored.strip_prefix(keys.prefix.as_bytes()) else { continue };
                        keys.open(key, rest)
                    }
                    Transformer::Kms(kms) => {
                        let Some(rest) = stored.strip_prefix(kms.prefix().as_bytes()) else { continue };
                        kms.open(key, rest)
                    }
                };
                match opened {
                    Ok(Opened { value, stale }) => return Ok(Opened { value, stale: stale || i != 0 }),
                    Err(e) => why = e,
                }
            }
            Err(why)
        })
    }
}

#[cfg(test)]
#[path = "encryption/tests.rs"]
mod tests;
