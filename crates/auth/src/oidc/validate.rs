//! What an AuthenticationConfiguration may say, with upstream's messages; and its expressions, compiled.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use coracle_cel::{Checked, DeclType, Env, Program, Type};
use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;

use super::config::{AuthenticationConfiguration, ClaimRule, JwtAuthenticator, PrefixedClaim};

/// The expressions of a provider.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    pub(super) username: Option<Program>,
    pub(super) groups: Option<Program>,
    pub(super) uid: Option<Program>,
    /// By key, in the order of the configuration.
    pub(super) extra: Vec<(String, Program)>,
    /// With the message of a rule that does not hold, and its text.
    pub(super) claim_rules: Vec<(Program, String, String)>,
    pub(super) user_rules: Vec<(Program, String, String)>,
}

static CLAIMS: LazyLock<Env> =
    LazyLock::new(|| Env::new().with_variable("claims", Type::map(Type::String, Type::Any)));

static USER: LazyLock<Env> = LazyLock::new(|| {
    let text = || DeclType::simple(Type::String);
    let texts = || DeclType::list(text(), -1);
    let user: Arc<DeclType> = DeclType::object(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", texts()),
            ("extra", DeclType::map(text(), texts(), -1)),
        ],
    );
    Env::new().with_declared("user", &user)
});

/// Checks a configuration; `disallowed` are issuers that only this server may be. The expressions are those of its
/// providers, in their order.
///
/// # Errors
/// All that is wrong with it.
pub fn validate(
    config: &AuthenticationConfiguration,
    disallowed: &[String],
) -> Result<Vec<Compiled>, ErrorList> {
    let mut errs = ErrorList::new();
    let root = Path::new("jwt");
    if config.jwt.len() > 64 {
        errs.too_many(&root, config.jwt.len(), 64);
    }
    let (mut urls, mut discoveries) = (HashSet::new(), HashSet::new());
    let mut all = Vec::new();
    for (i, jwt) in config.jwt.iter().enumerate() {
        let path = root.index(i);
        all.push(provider(jwt, &path, disallowed, &mut errs));
        let issuer = path.child("issuer");
        if !urls.insert(&jwt.issuer.url) {
            errs.duplicate(issuer.child("url"), jwt.issuer.url.as_str());
        }
        let discovery = &jwt.issuer.discovery_url;
        if !discovery.is_empty() && !discoveries.insert(discovery) {
            errs.duplicate(issuer.child("discoveryURL"), discovery.as_str());
        }
    }
    if let Some(anonymous) = &config.anonymous
        && !anonymous.enabled
        && !anonymous.conditions.is_empty()
    {
        let paths: Vec<_> =
            anonymous.conditions.iter().map(|c| serde_json::json!({ "path": c.path })).collect();
        let why = "enabled should be set to true when conditions are defined";
        errs.invalid("anonymous.conditions", serde_json::Value::from(paths), why);
    }
    if errs.is_empty() { Ok(all) } else { Err(errs) }
}

fn provider(jwt: &JwtAuthenticator, path: &Path, disallowed: &[String], errs: &mut ErrorList) -> Compiled {
    let mut out = Compiled::default();
    issuer(jwt, &path.child("issuer"), disallowed, errs);
    let mut verified = false;
    claim_rules(
        &jwt.claim_validation_rules,
        &path.child("claimValidationRules"),
        &mut out,
        &mut verified,
        errs,
    );
    mappings(jwt, &path.child("claimMappings"), &mut out, verified, errs);
    user_rules(jwt, &path.child("userValidationRules"), &mut out, errs);
    out
}

fn issuer(jwt: &JwtAuthenticator, path: &Path, disallowed: &[String], errs: &mut ErrorList) {
    let issuer = &jwt.issuer;
    let at = path.child("url");
    if issuer.url.is_empty() {
        errs.required(&at, "");
    } else {
        url(&issuer.url, disallowed, &at, errs);
    }
    if !issuer.discovery_url.is_empty() {
        let at = path.child("discoveryURL");
        let bare = |url: &str| url.trim_end_matches('/').to_owned();
        if !issuer.url.is_empty() && bare(&issuer.url) == bare(&issuer.discovery_url) {
            errs.invalid(&at, issuer.discovery_url.as_str(), "discoveryURL must be different from URL");
        }
        url(&issuer.discovery_url, &[], &at, errs);
    }
    audiences(jwt, path, errs);
    let ca = &issuer.certificate_authority;
    if !ca.is_empty() && !ca.contains("-----BEGIN CERTIFICATE-----") {
        let why = "data does not contain any valid RSA or ECDSA certificates";
        errs.invalid(path.child("certificateAuthority"), "<omitted>", why);
    }
    let egress = &issuer.egress_selector_type;
    if !egress.is_empty() && !matches!(egress.as_str(), "controlplane" | "cluster") {
        let why = "egress selector must be either controlplane or cluster";
        errs.invalid(path.child("egressSelectorType"), egress.as_str(), why);
    }
}

fn audiences(jwt: &JwtAuthenticator, path: &Path, errs: &mut ErrorList) {
    let (list, policy) = (&jwt.issuer.audiences, jwt.issuer.audience_match_policy.as_str());
    let at = path.child("audiences");
    if list.is_empty() {
        errs.required(&at, format!("at least one {at} is required"));
        return;
    }
    let mut seen = HashSet::new();
    for (i, audience) in list.iter().enumerate() {
        if audience.is_empty() {
            errs.required(at.index(i), "");
        }
        if !seen.insert(audience) {
            errs.duplicate(at.index(i), audience.as_str());
        }
    }
    let at = path.child("audienceMatchPolicy");
    if list.len() > 1 && policy != "MatchAny" {
        errs.invalid(at, policy, "audienceMatchPolicy must be MatchAny for multiple audiences");
    } else if list.len() == 1 && !policy.is_empty() && policy != "MatchAny" {
        let why = "audienceMatchPolicy must be empty or MatchAny for single audience";
        errs.invalid(at, policy, why);
    }
}

fn url(text: &str, disallowed: &[String], path: &Path, errs: &mut ErrorList) {
    if disallowed.iter().any(|d| d == text) {
        let why = format!("URL must not overlap with disallowed issuers: [{}]", disallowed.join(" "));
        errs.invalid(path, text, why);
    }
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    if scheme != "https" {
        errs.invalid(path, text, "URL scheme must be https");
    }
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        errs.invalid(path, text, "URL must not contain a username or password");
    }
    if !query.is_empty() {
        errs.invalid(path, text, "URL must not contain a query");
    }
    if !fragment.is_empty() {
        errs.invalid(path, text, "URL must not contain a fragment");
    }
}

/// Compiles an expression; one that must hold yields a bool.
fn compile(
    env: &Env,
    expression: &str,
    holds: bool,
    path: &Path,
    errs: &mut ErrorList,
) -> Option<(Checked, Program)> {
    let made = env.compile(expression).map_err(|issues| format!("compilation failed: {issues}"));
    let made = made.and_then(|checked| match *checked.output_type() {
        Type::Bool => Ok(checked),
        _ if holds => Err("must evaluate to bool".to_owned()),
        _ => Ok(checked),
    });
    let program = |checked: Checked| match checked.program() {
        Ok(program) => Ok((checked, program)),
        Err(fault) => Err(format!("program instantiation failed: {fault}")),
    };
    made.and_then(program).map_err(|why| errs.invalid(path, expression, why)).ok()
}

fn claim_rules(
    rules: &[ClaimRule],
    root: &Path,
    out: &mut Compiled,
    verified: &mut bool,
    errs: &mut ErrorList,
) {
    let (mut claims, mut expressions) = (HashSet::new(), HashSet::new());
    for (i, rule) in rules.iter().enumerate() {
        let path = root.index(i);
        match (rule.claim.is_empty(), rule.expression.is_empty()) {
            (false, false) => {
                errs.invalid(&path, rule.claim.as_str(), "claim and expression can't both be set");
            }
            (true, true) => errs.required(&path, "claim or expression is required"),
            (false, true) => {
                if !rule.message.is_empty() {
                    let why = "may not be specified when claim is set";
                    errs.invalid(path.child("message"), rule.message.as_str(), why);
                }
                if !claims.insert(&rule.claim) {
                    errs.duplicate(path.child("claim"), rule.claim.as_str());
                }
            }
            (true, false) => {
                if !rule.required_value.is_empty() {
                    let why = "may not be specified when expression is set";
                    errs.invalid(path.child("requiredValue"), rule.required_value.as_str(), why);
                }
                let at = path.child("expression");
                if !expressions.insert(&rule.expression) {
                    errs.duplicate(at, rule.expression.as_str());
                    continue;
                }
                let Some((checked, program)) = compile(&CLAIMS, &rule.expression, true, &at, errs) else {
                    continue;
                };
                *verified |= checked.selects("claims", "email_verified");
                out.claim_rules.push((program, rule.message.clone(), rule.expression.clone()));
            }
        }
    }
}

fn mappings(
    jwt: &JwtAuthenticator,
    path: &Path,
    out: &mut Compiled,
    mut verified: bool,
    errs: &mut ErrorList,
) {
    let mappings = &jwt.claim_mappings;
    let username = prefixed(&mappings.username, &path.child("username"), true, errs);
    let email = username.as_ref().is_some_and(|(checked, _)| checked.selects("claims", "email"));
    verified |= username.as_ref().is_some_and(|(checked, _)| checked.selects("claims", "email_verified"));
    out.username = username.map(|(_, program)| program);
    out.groups = prefixed(&mappings.groups, &path.child("groups"), false, errs).map(|(_, program)| program);
    let (uid, at) = (&mappings.uid, path.child("uid"));
    if !uid.claim.is_empty() && !uid.expression.is_empty() {
        errs.invalid(at, "", "claim and expression can't both be set");
    } else if !uid.expression.is_empty() {
        let made = compile(&CLAIMS, &uid.expression, false, &at.child("expression"), errs);
        out.uid = made.map(|(_, program)| program);
    }
    let mut keys = HashSet::new();
    for (i, extra) in mappings.extra.iter().enumerate() {
        let (path, key) = (path.child("extra").index(i), extra.key.as_str());
        extra_key(key, &path.child("key"), errs);
        if !keys.insert(key) {
            errs.duplicate(path.child("key"), key);
            continue;
        }
        let at = path.child("valueExpression");
        if extra.value_expression.is_empty() {
            errs.required(at, "");
            continue;
        }
        if let Some((checked, program)) = compile(&CLAIMS, &extra.value_expression, false, &at, errs) {
            verified |= checked.selects("claims", "email_verified");
            out.extra.push((key.to_owned(), program));
        }
    }
    if email && !verified {
        let why = "claims.email_verified must be used in claimMappings.username.expression or \
                   claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is \
                   used in claimMappings.username.expression";
        errs.invalid(path.child("username").child("expression"), mappings.username.expression.as_str(), why);
    }
}

fn prefixed(
    mapping: &PrefixedClaim,
    path: &Path,
    required: bool,
    errs: &mut ErrorList,
) -> Option<(Checked, Program)> {
    match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
        (false, false) => errs.invalid(path, "", "claim and expression can't both be set"),
        (true, true) if required => errs.required(path, "claim or expression is required"),
        (true, true) => {}
        (true, false) => {
            if let Some(prefix) = &mapping.prefix {
                let why = "may not be specified when expression is set";
                errs.invalid(path.child("prefix"), prefix.as_str(), why);
            }
            return compile(&CLAIMS, &mapping.expression, false, &path.child("expression"), errs);
        }
        (false, true) if mapping.prefix.is_none() => {
            let why =
                "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
            errs.required(path.child("prefix"), why);
        }
        (false, true) => {}
    }
    None
}

fn user_rules(jwt: &JwtAuthenticator, root: &Path, out: &mut Compiled, errs: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (i, rule) in jwt.user_validation_rules.iter().enumerate() {
        let at = root.index(i).child("expression");
        if rule.expression.is_empty() {
            errs.required(at, "");
        } else if !seen.insert(&rule.expression) {
            errs.duplicate(at, rule.expression.as_str());
        } else if let Some((_, program)) = compile(&USER, &rule.expression, true, &at, errs) {
            out.user_rules.push((program, rule.message.clone(), rule.expression.clone()));
        }
    }
}

/// A key of an extra attribute: beside its form, its case and whose domain it is in.
fn extra_key(key: &str, path: &Path, errs: &mut ErrorList) {
    names::check_prefixed_path(key, path, errs);
    if key != key.to_lowercase() {
        errs.invalid(path, key, "must be lowercase");
    }
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let within = |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|d| d.ends_with('.'));
    if within("kubernetes.io") || within("k8s.io") {
        let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
        errs.invalid(path, key, why);
    }
}
