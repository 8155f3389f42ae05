//! Secret: data to be kept from eyes.

use std::collections::BTreeMap;

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use crate::check::named;
use crate::common::{column, text};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Type",
        "string",
        "",
        "Used to facilitate programmatic handling of secret data. More info: \
         https://kubernetes.io/docs/concepts/configuration/secret/#secret-types",
    ),
    column(
        "Data",
        "string",
        "",
        "Data contains the secret data. Each key must consist of alphanumeric characters, '-', '_' or \
         '.'. The serialized form of the secret data is a base64 encoded string, representing the \
         arbitrary (possibly non-string) data value here. Described in \
         https://tools.ietf.org/html/rfc4648#section-4",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    columns: COLUMNS,
    ..ResourceDef::new::<Secret>("secret", &Typed::<Secret, _>::new(Secrets))
};

struct Secrets;

/// Total size of a Secret's or ConfigMap's values.
pub(super) const MAX_SIZE: usize = 1024 * 1024;

const REDACTED: &str = "\"<secret contents redacted>\"";

impl Strategy<Secret> for Secrets {
    fn default(&self, obj: &mut Secret) {
        if text(obj.type_.as_ref()).is_empty() {
            obj.type_ = Some("Opaque".to_owned());
        }
        if let Some(strings) = obj.string_data.take() {
            let data = obj.data.get_or_insert_default();
            data.extend(strings.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))));
        }
        obj.data = obj.data.take().filter(|data| !data.is_empty());
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut Secret, old: &Secret) {
        if text(new.type_.as_ref()).is_empty() {
            new.type_.clone_from(&old.type_);
        }
    }

    fn warnings(&self, new: &Secret, _: Option<&Secret>) -> Vec<String> {
        let certificate = new.data.as_ref().and_then(|data| data.get("tls.crt"));
        let certificate = certificate.filter(|_| text(new.type_.as_ref()) == "kubernetes.io/tls");
        match certificate {
            Some(pem) if !pem.0.windows(10).any(|part| part == b"-----BEGIN") => {
                vec!["tls: failed to find any PEM data in certificate input".to_owned()]
            }
            _ => Vec::new(),
        }
    }

    fn validate(&self, obj: &Secret, errs: &mut ErrorList) {
        let data = Path::new("data");
        let mut size = 0;
        for (key, value) in obj.data.iter().flatten() {
            named(errs, &data.key(key), key, names::config_key);
            size += value.0.len();
        }
        if size > MAX_SIZE {
            errs.too_long("data", MAX_SIZE);
        }
        by_type(obj, &data, errs);
    }

    fn validate_update(&self, new: &Secret, old: &Secret, errs: &mut ErrorList) {
        const WHY: &str = "field is immutable when `immutable` is set";
        errs.immutable("type", &new.type_, &old.type_);
        if old.immutable == Some(true) {
            if new.immutable != Some(true) {
                errs.forbidden("immutable", WHY);
            }
            if new.data != old.data {
                errs.forbidden("data", WHY);
            }
        }
        self.validate(new, errs);
    }

    fn row(&self, obj: &Secret, now: Timestamp) -> Vec<Value> {
        let meta = &obj.metadata;
        vec![
            meta.name.clone().into(),
            text(obj.type_.as_ref()).into(),
            obj.data.as_ref().map_or(0, |d| d.len()).into(),
            age(meta.creation_timestamp.as_ref(), now),
        ]
    }

    fn selectable(&self, obj: &Secret) -> Vec<(&'static str, String)> {
        vec![("type", text(obj.type_.as_ref()).to_owned())]
    }
}

/// Checks that the keys which a built-in type promises are there.
fn by_type(obj: &Secret, data: &Path, errs: &mut ErrorList) {
    let empty = BTreeMap::new();
    let values = obj.data.as_ref().unwrap_or(&empty);
    let has = |key: &str| values.contains_key(key);
    match text(obj.type_.as_ref()) {
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            let name = obj.metadata.annotations.as_ref().and_then(|a| a.get(NAME));
            if text(name).is_empty() {
                errs.required(Path::new("metadata").child("annotations").key(NAME), "");
            }
        }
        "kubernetes.io/dockercfg" => json_key(values.get(".dockercfg"), &data.key(".dockercfg"), errs),
        "kubernetes.io/dockerconfigjson" => {
            json_key(values.get(".dockerconfigjson"), &data.key(".dockerconfigjson"), errs);
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            errs.required(data.key("username"), "");
            errs.required(data.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if values.get("ssh-privatekey").is_none_or(|v| v.0.is_empty()) => {
            errs.required(data.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if !has(key) {
                    errs.required(data.key(key), "");
                }
            }
        }
        _ => {}
    }
}

fn json_key(value: Option<&ByteString>, path: &Path, errs: &mut ErrorList) {
    let Some(value) = value else { return errs.required(path, "") };
    let kind = match serde_json::from_slice::<Value>(&value.0) {
        Err(e) => {
            let detail = json_error(&value.0, &e);
            let (kind, value) = (ErrorKind::Invalid, Some(REDACTED.to_owned()));
            return errs.push(Error { kind, path: path.to_string(), value, detail });
        }
        Ok(Value::Object(_) | Value::Null) => return,
        Ok(Value::Array(_)) => "array",
        Ok(Value::String(_)) => "string",
        Ok(Value::Bool(_)) => "bool",
        Ok(Value::Number(_)) => "number",
    };
    let detail = format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}");
    let (kind, value) = (ErrorKind::Invalid, Some(REDACTED.to_owned()));
    errs.push(Error { kind, path: path.to_string(), value, detail });
}

/// The text Go's decoder would give.
fn json_error(text: &[u8], error: &serde_json::Error) -> String {
    let last = |column: usize| text.get(column.saturating_sub(1)).map_or(' ', |b| char::from(*b));
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let place = if error.to_string().starts_with("trailing") {
        "after top-level value"
    } else {
        "looking for beginning of value"
    };
    format!("invalid character {:?} {place}", last(error.column()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_registries_are_json_objects() {
        let told = |text: &str| {
            let mut errs = ErrorList::new();
            json_key(Some(&ByteString(text.into())), &Path::new("data"), &mut errs);
            errs.iter().next().map(ToString::to_string)
        };
        assert_eq!((told("{}"), told("null")), (None, None));
        let why = "data: Invalid value: \"<secret contents redacted>\": json: cannot unmarshal number into Go \
                   value of type map[string]interface {}";
        assert_eq!(told("-1").as_deref(), Some(why));
    }
}
