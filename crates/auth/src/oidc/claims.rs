//! Whom the claims of a token make of who shows it.

use std::collections::BTreeMap;

use coracle_cel::{PER_CALL_LIMIT, Program, Value as Cel};
use serde_json::{Value, json};

use super::Claims;
use super::config::{JwtAuthenticator, PrefixedClaim};
use super::validate::Compiled;
use crate::user::UserInfo;

const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
const NO_TEXTS: &str = "expression must return a string or a list of strings";

/// The user, or why there is none, in upstream's words.
pub(super) fn user(
    config: &JwtAuthenticator,
    compiled: &Compiled,
    claims: &Claims,
) -> Result<UserInfo, String> {
    let value = Cel::from_json(&doubles(&Value::Object(claims.clone())));
    let name = username(&config.claim_mappings.username, compiled, claims, &value)?;
    let mut groups = groups(&config.claim_mappings.groups, compiled, claims, &value)?;
    let uid = uid(config, compiled, claims, &value)?;
    let mut extra = BTreeMap::new();
    if let Some(id) = claims.get("jti").and_then(Value::as_str).filter(|id| !id.is_empty()) {
        extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
    }
    for (key, program) in &compiled.extra {
        let found = eval(program, "claims", &value)?;
        let list = texts(&found).ok_or_else(|| {
            let expression = &config.claim_mappings.extra.iter().find(|e| e.key == *key);
            let expression = expression.map_or("", |e| e.value_expression.as_str());
            format!("oidc: error evaluating extra claim expression: {expression}: {NO_TEXTS}")
        })?;
        let list: Vec<String> = list.into_iter().filter(|text| !text.is_empty()).collect();
        if !list.is_empty() {
            extra.insert(key.clone(), list);
        }
    }
    required(config, claims)?;
    for (program, message, text) in &compiled.claim_rules {
        let held = eval(program, "claims", &value);
        hold(held, message, text)
            .map_err(|e| format!("oidc: error evaluating claim validation expression: {e}"))?;
    }
    let shown = json!({ "username": name, "uid": uid, "groups": groups, "extra": extra });
    let shown = Cel::from_json(&shown);
    for (program, message, text) in &compiled.user_rules {
        let held = eval(program, "user", &shown);
        hold(held, message, text)
            .map_err(|e| format!("oidc: error evaluating user info validation rule: {e}"))?;
    }
    if !groups.iter().any(|g| g == "system:authenticated") {
        groups.push("system:authenticated".to_owned());
    }
    Ok(UserInfo { name, uid, groups, extra })
}

/// Numbers of claims are doubles to expressions, whole or not.
fn doubles(value: &Value) -> Value {
    match value {
        Value::Number(n) => n.as_f64().map_or(Value::Null, Value::from),
        Value::Array(items) => items.iter().map(doubles).collect(),
        Value::Object(fields) => fields.iter().map(|(k, v)| (k.clone(), doubles(v))).collect(),
        other => other.clone(),
    }
}

fn eval(program: &Program, variable: &str, value: &Cel) -> Result<Cel, String> {
    program.eval(&[(variable, value.clone())], PER_CALL_LIMIT).result.map_err(|fault| fault.to_string())
}

fn hold(held: Result<Cel, String>, message: &str, text: &str) -> Result<(), String> {
    match held? {
        Cel::Bool(true) => Ok(()),
        Cel::Bool(false) => Err(format!("validation expression '{text}' failed: {message}")),
        _ => Err("validation expression must return a boolean".to_owned()),
    }
}

/// A text or a list of texts; nothing is an empty list.
fn texts(value: &Cel) -> Option<Vec<String>> {
    match value.to_json().ok()? {
        Value::String(one) => Some(vec![one]),
        Value::Array(many) => many.into_iter().map(|v| v.as_str().map(str::to_owned)).collect(),
        Value::Null => Some(Vec::new()),
        _ => None,
    }
}

fn username(
    mapping: &PrefixedClaim,
    compiled: &Compiled,
    claims: &Claims,
    value: &Cel,
) -> Result<String, String> {
    if let Some(program) = &compiled.username {
        let failed = |e: String| format!("oidc: error evaluating username claim expression: {e}");
        let found = eval(program, "claims", value).map_err(failed)?;
        return match found.as_str() {
            None => Err(failed("username claim expression must return a string".to_owned())),
            Some("") => Err("oidc: empty username via CEL expression is not allowed".to_owned()),
            Some(name) => Ok(name.to_owned()),
        };
    }
    let claim = &mapping.claim;
    let name = match claims.get(claim) {
        None => return Err(format!("oidc: parse username claims {claim:?}: claim not present")),
        Some(found) => found.as_str().ok_or_else(|| {
            format!("oidc: parse username claims {claim:?}: json: cannot unmarshal value into Go value of type string")
        })?,
    };
    if claim == "email" {
        match claims.get("email_verified") {
            None | Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Err("oidc: email not verified".to_owned()),
            Some(_) => {
                return Err(
                    "oidc: parse 'email_verified' claim: json: cannot unmarshal value into Go value of type \
                            bool"
                        .to_owned(),
                );
            }
        }
    }
    Ok(format!("{}{name}", mapping.prefix.as_deref().unwrap_or("")))
}

fn groups(
    mapping: &PrefixedClaim,
    compiled: &Compiled,
    claims: &Claims,
    value: &Cel,
) -> Result<Vec<String>, String> {
    if let Some(program) = &compiled.groups {
        let failed = |e: String| format!("oidc: error evaluating group claim expression: {e}");
        let found = eval(program, "claims", value).map_err(failed)?;
        let list = texts(&found).ok_or_else(|| failed(NO_TEXTS.to_owned()))?;
        return Ok(list.into_iter().filter(|text| !text.is_empty()).collect());
    }
    let claim = &mapping.claim;
    let found = match claims.get(claim) {
        _ if claim.is_empty() => return Ok(Vec::new()),
        None => return Ok(Vec::new()),
        Some(found) => texts(&Cel::from_json(found)),
    };
    let found =
        found.ok_or_else(|| format!("oidc: parse groups claim {claim:?}: json: cannot unmarshal value"))?;
    let prefix = mapping.prefix.as_deref().unwrap_or("");
    Ok(found.into_iter().map(|group| format!("{prefix}{group}")).collect())
}

fn uid(
    config: &JwtAuthenticator,
    compiled: &Compiled,
    claims: &Claims,
    value: &Cel,
) -> Result<String, String> {
    if let Some(program) = &compiled.uid {
        let failed = |e: String| format!("oidc: error evaluating uid claim expression: {e}");
        let found = eval(program, "claims", value).map_err(failed)?;
        let text = found.as_str().map(str::to_owned);
        return text.ok_or_else(|| failed("uid claim expression must return a string".to_owned()));
    }
    let claim = &config.claim_mappings.uid.claim;
    if claim.is_empty() {
        return Ok(String::new());
    }
    let found = claims.get(claim).and_then(Value::as_str);
    found.map(str::to_owned).ok_or_else(|| format!("oidc: parse uid claim {claim:?}: claim not present"))
}

fn required(config: &JwtAuthenticator, claims: &Claims) -> Result<(), String> {
    for rule in config.claim_validation_rules.iter().filter(|rule| !rule.claim.is_empty()) {
        let (claim, want) = (&rule.claim, &rule.required_value);
        let Some(found) = claims.get(claim) else {
            return Err(format!("oidc: required claim {claim} not present in ID token"));
        };
        let Some(got) = found.as_str() else {
            return Err(format!(
                "oidc: parse claim {claim}: json: cannot unmarshal value into Go value of type string"
            ));
        };
        if got != want {
            return Err(format!(
                "oidc: required claim {claim} value does not match. Got = {got}, want = {want}"
            ));
        }
    }
    Ok(())
}
