//! Bodies of kinds that are only ever sent, never served: Binding, Eviction, TokenRequest and Scale. Go's types and
//! the schemas say what they are, as there is no definition of them.

use coracle_meta::{Status, go};
use serde_json::Value;

use super::decode::{self, Wanted, parse};
use super::{Caller, Input};
use crate::server::Server;

/// A kind that is sent to a subresource.
#[derive(Debug)]
pub(crate) struct SentKind {
    /// Its name.
    pub(crate) kind: &'static str,
    /// Its group and version.
    pub(crate) api_version: &'static str,
    /// Another version that is taken as well.
    also: Option<&'static str>,
    /// Versions that are refused, but known.
    others: &'static [&'static str],
    /// Its type in Go's table.
    pub(crate) go_type: &'static str,
    /// The package of upstream's internal type.
    package: &'static str,
    /// Its schema.
    pub(crate) schema: &'static str,
}

pub(crate) static BINDING: SentKind = SentKind {
    kind: "Binding",
    api_version: "v1",
    also: None,
    others: &[],
    go_type: "core/v1.Binding",
    package: "core",
    schema: "io.k8s.api.core.v1.Binding",
};

pub(crate) static EVICTION: SentKind = SentKind {
    kind: "Eviction",
    api_version: "policy/v1",
    also: Some("policy/v1beta1"),
    others: &[],
    go_type: "policy/v1.Eviction",
    package: "policy",
    schema: "io.k8s.api.policy.v1.Eviction",
};

pub(crate) static TOKEN_REQUEST: SentKind = SentKind {
    kind: "TokenRequest",
    api_version: "authentication.k8s.io/v1",
    also: None,
    others: &[],
    go_type: "authentication/v1.TokenRequest",
    package: "authentication",
    schema: "io.k8s.api.authentication.v1.TokenRequest",
};

pub(crate) static SCALE: SentKind = SentKind {
    kind: "Scale",
    api_version: "autoscaling/v1",
    also: None,
    others: &["apps/v1beta1", "apps/v1beta2", "extensions/v1beta1"],
    go_type: "autoscaling/v1.Scale",
    package: "autoscaling",
    schema: "io.k8s.api.autoscaling.v1.Scale",
};

impl SentKind {
    /// 400 in the words of upstream's decoder.
    pub(crate) fn unusable(&self, why: &str) -> Status {
        let (kind, version) = (self.kind, self.api_version.rsplit('/').next().unwrap_or(""));
        Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    }
}

impl Server {
    /// The JSON of a body of such a kind. The caller is warned of unknown fields, or refused if strict.
    ///
    /// # Errors
    /// 400 with upstream's texts.
    pub(crate) fn sent(
        &self,
        caller: &Caller,
        kind: &SentKind,
        input: Input,
        validation: &str,
    ) -> Result<Value, Status> {
        let (value, text, doubled) = match input {
            Input::Object(obj) => return Ok(obj.to_value()),
            // From protobuf, which has neither other types nor other fields.
            Input::Json(value) => return Ok(value),
            Input::Text(text) => {
                let value = parse(&text, kind.kind)?;
                decode::check_shape(&value, &text, kind.kind)?;
                (value, Some(text), None)
            }
            Input::Yaml(value, doubled) => (value, None, doubled),
        };
        let told = value.get("apiVersion").and_then(Value::as_str);
        if told.is_none_or(|told| kind.also != Some(told)) {
            let wanted = Wanted {
                kind: kind.kind,
                api_version: kind.api_version.to_owned(),
                others: kind.others,
                scheme: decode::SCHEME,
                package: kind.package,
            };
            decode::check_head(self, &value, &wanted)?;
        }
        let said = text.unwrap_or_else(|| value.to_string().into());
        if let Some(why) = go::type_error(kind.go_type, &said) {
            return Err(kind.unusable(&why));
        }
        if validation != "Ignore" {
            let mut strict: Vec<String> = doubled.into_iter().collect();
            strict.extend(self.fields.strict_errors_of(kind.schema, &said));
            if validation == "Strict" && !strict.is_empty() {
                return Err(kind.unusable(&format!("strict decoding error: {}", strict.join(", "))));
            }
            caller.warn(&decode::strict_warnings(strict));
        }
        Ok(value)
    }
}
