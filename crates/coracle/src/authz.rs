//! Flags of `coracle apiserver` that say who decides what users may do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use coracle_apiserver::{MakeAuthorizers, Reload};
use coracle_auth::abac::AbacAuthorizer;
use coracle_auth::always::Always;
use coracle_auth::authz_config::{
    AuthorizationConfiguration, AuthorizerConfiguration, WebhookConfiguration, condition, validate,
};
use coracle_auth::authz_webhook::{AuthorizationWebhook, WebhookAuthorizer};
use coracle_auth::node::NodeAuthorizer;
use coracle_auth::rbac::RbacAuthorizer;
use coracle_auth::{Authorizer, Remote};
use coracle_meta::ObjectReader;
use coracle_meta::cron::duration;
use coracle_stdx::Clock;

use crate::apiserver::read;
use crate::error::Failure;
use crate::followed::{Followed, Refused};
use crate::following::Reloading;
use crate::remote;

/// The mode that goes by a file of policies.
const ABAC: &str = "ABAC";

/// Who decides.
#[derive(Args, Clone, Debug)]
pub struct AuthorizationArgs {
    /// Who decides, in order: Node, RBAC, Webhook, ABAC, AlwaysAllow, AlwaysDeny.
    #[arg(long, default_value = "Node,RBAC", value_delimiter = ',')]
    authorization_mode: Vec<String>,
    /// Policies that mode ABAC decides by, one JSON object a line.
    #[arg(long)]
    authorization_policy_file: Option<PathBuf>,
    /// File that says who decides, instead of the flags; read again when it changes.
    #[arg(long, conflicts_with = "authorization_webhook_config_file")]
    authorization_config: Option<PathBuf>,
    /// Kubeconfig of the server that mode Webhook asks.
    #[arg(long)]
    authorization_webhook_config_file: Option<PathBuf>,
    /// Version of the reviews that it gets: v1 or v1beta1.
    #[arg(long, default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    authorization_webhook_version: String,
    /// How long its yes is believed.
    #[arg(long, default_value = "5m0s", value_parser = duration)]
    authorization_webhook_cache_authorized_ttl: Duration,
    /// How long anything else that it says is believed.
    #[arg(long, default_value = "30s", value_parser = duration)]
    authorization_webhook_cache_unauthorized_ttl: Duration,
}

/// The authorizers of every cluster.
pub fn usual() -> MakeAuthorizers {
    Box::new(|reader| {
        vec![Arc::new(NodeAuthorizer::new(reader.clone())), Arc::new(RbacAuthorizer::new(reader))]
    })
}

impl AuthorizationArgs {
    /// The authorizers that the flags ask for; `reload` tells what becomes of changes of their file.
    ///
    /// # Errors
    /// Flags that contradict each other, or a file that cannot be used.
    pub fn authorizers(&self, reload: &Arc<Reload>, clock: &Clock) -> Result<MakeAuthorizers, Failure> {
        if let Some(path) = &self.authorization_config {
            return configured(path.clone(), reload.clone(), clock.clone());
        }
        let config = self.as_configuration()?;
        let mut hooks = hooks(&config).map_err(Failure::usage)?;
        let policies = self.policies()?;
        for (authorizer, hook) in config.authorizers.iter().zip(&mut hooks) {
            if authorizer.kind == ABAC {
                hook.clone_from(&policies);
            }
        }
        Ok(Box::new(move |reader| build(&config, &hooks, &reader)))
    }

    /// The authorizer of mode ABAC, if that is asked for.
    fn policies(&self) -> Result<Option<Arc<dyn Authorizer>>, Failure> {
        let asked = self.authorization_mode.iter().any(|mode| mode == ABAC);
        match (&self.authorization_policy_file, asked) {
            (None, false) => Ok(None),
            (None, true) => {
                let why = "authorization-mode ABAC's authorization policy file not passed";
                Err(Failure::usage(why.to_owned()))
            }
            (Some(_), false) => {
                let why = "cannot specify --authorization-policy-file without mode ABAC";
                Err(Failure::usage(why.to_owned()))
            }
            (Some(path), true) => {
                let made = AbacAuthorizer::parse(&path.display().to_string(), &read(path)?);
                let hint = "see https://kubernetes.io/docs/reference/access-authn-authz/abac/";
                Ok(Some(Arc::new(made.map_err(|why| Failure::new(why, hint))?)))
            }
        }
    }

    /// The flags as a configuration.
    fn as_configuration(&self) -> Result<AuthorizationConfiguration, Failure> {
        let mut authorizers = Vec::new();
        for mode in &self.authorization_mode {
            if mode != ABAC && !coracle_auth::authz_config::TYPES.contains(&mode.as_str()) {
                let why = format!("authorization-mode {mode:?} is not a valid mode");
                return Err(Failure::usage(why));
            }
            if authorizers.iter().any(|a: &AuthorizerConfiguration| a.kind == *mode) {
                let modes = self.authorization_mode.join(" ");
                let why = format!("authorization-mode [{modes}] has mode specified more than once");
                return Err(Failure::usage(why));
            }
            let name = if mode == "Webhook" { "default".to_owned() } else { mode.to_lowercase() };
            let webhook = (mode == "Webhook").then(|| WebhookConfiguration {
                timeout: Some("30s".into()),
                subject_access_review_version: self.authorization_webhook_version.clone(),
                failure_policy: "NoOpinion".into(),
                ..WebhookConfiguration::default()
            });
            authorizers.push(AuthorizerConfiguration { kind: mode.clone(), name, webhook });
        }
        let file = self.authorization_webhook_config_file.as_ref();
        let asked = authorizers.iter_mut().find_map(|a| a.webhook.as_mut());
        match (asked, file) {
            (Some(hook), Some(file)) => {
                hook.connection_info.kind = "KubeConfigFile".into();
                hook.connection_info.kube_config_file = Some(file.display().to_string());
                let seconds = |time: Duration| Some(format!("{}s", time.as_secs_f64()));
                hook.authorized_ttl = seconds(self.authorization_webhook_cache_authorized_ttl);
                hook.unauthorized_ttl = seconds(self.authorization_webhook_cache_unauthorized_ttl);
            }
            (Some(_), None) => {
                return Err(Failure::usage(
                    "authorization-mode Webhook's authorization config file not passed".to_owned(),
                ));
            }
            (None, Some(_)) => {
                let why = "cannot specify --authorization-webhook-config-file without mode Webhook";
                return Err(Failure::usage(why.to_owned()));
            }
            (None, None) => {}
        }
        Ok(AuthorizationConfiguration { authorizers, ..AuthorizationConfiguration::default() })
    }
}

type Hooks = Vec<Option<Arc<dyn Authorizer>>>;

/// The authorizers of a configuration file.
fn configured(path: PathBuf, reload: Arc<Reload>, clock: Clock) -> Result<MakeAuthorizers, Failure> {
    let text = read(&path)?;
    let failed = |why: String| {
        let what = format!("failed to load AuthorizationConfiguration from file {:?}: {why}", path.display());
        Failure::new(what, "see apiserver.config.k8s.io/v1 AuthorizationConfiguration")
    };
    let config = parse(&text, &BTreeSet::new()).map_err(failed)?;
    let ready = hooks(&config).map_err(failed)?;
    Ok(Box::new(move |reader| {
        let first = build(&config, &ready, &reader);
        let required = kinds(&config);
        let mut known = config;
        let again = move |text: String| {
            let made = again(&text, &required, &mut known, &reader).map_err(Refused::Bad);
            std::future::ready(made)
        };
        let followed = Followed::new(path, text, reload, clock);
        vec![Reloading::follow(followed, first, again) as Arc<dyn Authorizer>]
    }))
}

/// What a changed file asks for; nothing when it means what `known` does.
fn again(
    text: &str,
    required: &BTreeSet<String>,
    known: &mut AuthorizationConfiguration,
    reader: &Arc<dyn ObjectReader>,
) -> Result<Option<Vec<Arc<dyn Authorizer>>>, String> {
    let config = parse(text, required)?;
    if config == *known {
        return Ok(None);
    }
    let made = build(&config, &hooks(&config)?, reader);
    *known = config;
    Ok(Some(made))
}

/// The types of authorizers that are no webhooks: a changed file must have those of the first.
fn kinds(config: &AuthorizationConfiguration) -> BTreeSet<String> {
    config.authorizers.iter().map(|a| a.kind.clone()).filter(|kind| kind != "Webhook").collect()
}

/// A configuration that is one, with authorizers of the `required` types.
fn parse(text: &str, required: &BTreeSet<String>) -> Result<AuthorizationConfiguration, String> {
    let config: AuthorizationConfiguration = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    check_kind(&config.api_version, &config.kind, "AuthorizationConfiguration")?;
    validate(&config).map_err(|errs| errs.aggregate())?;
    let own = config.authorizers.iter().filter(|a| a.kind != "Webhook" && a.name != a.kind.to_lowercase());
    let mut wrong: Vec<String> = own
        .map(|AuthorizerConfiguration { kind, name, .. }| {
            format!("expected name {} for authorizer {kind} instead of {name}", kind.to_lowercase())
        })
        .collect();
    let given = kinds(&config);
    let missing: Vec<&str> = required.difference(&given).map(String::as_str).collect();
    if !missing.is_empty() {
        wrong.push(format!("missing required types: [{}]", missing.join(" ")));
    }
    match wrong.as_slice() {
        [] => Ok(config),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// Whether a file is of a kind of apiserver.config.k8s.io.
pub fn check_kind(api_version: &str, kind: &str, wanted: &str) -> Result<(), String> {
    let version = api_version.strip_prefix("apiserver.config.k8s.io/");
    if matches!(version, Some("v1" | "v1beta1" | "v1alpha1")) && kind == wanted {
        return Ok(());
    }
    Err(format!("no kind {kind:?} is registered for version {api_version:?}"))
}

/// The webhooks of a configuration, in the places of their authorizers.
fn hooks(config: &AuthorizationConfiguration) -> Result<Hooks, String> {
    let one = |a: &AuthorizerConfiguration| a.webhook.as_ref().map(|h| hook(&a.name, h)).transpose();
    config.authorizers.iter().map(one).collect()
}

fn hook(name: &str, hook: &WebhookConfiguration) -> Result<Arc<dyn Authorizer>, String> {
    let file = hook.connection_info.kube_config_file.as_deref();
    let file = file.ok_or("an authorization webhook takes a kubeconfig file here")?;
    let (url, remote): (String, Arc<dyn Remote>) =
        remote::open(Path::new(file)).map_err(|e| e.to_string())?;
    let (allowed_for, refused_for, timeout) = hook.times();
    let conditions =
        hook.match_conditions.iter().map(|c| condition(&c.expression)).collect::<Result<_, _>>()?;
    let config = AuthorizationWebhook {
        name: name.to_owned(),
        url,
        version: hook.subject_access_review_version.clone(),
        allowed_for,
        refused_for,
        timeout,
        deny_on_failure: hook.failure_policy == "Deny",
        conditions,
    };
    Ok(Arc::new(WebhookAuthorizer::new(config, remote)))
}

fn build(
    config: &AuthorizationConfiguration,
    hooks: &Hooks,
    reader: &Arc<dyn ObjectReader>,
) -> Vec<Arc<dyn Authorizer>> {
    let one = |(a, hook): (&AuthorizerConfiguration, &Option<Arc<dyn Authorizer>>)| {
        let authorizer: Arc<dyn Authorizer> = match (a.kind.as_str(), hook) {
            (_, Some(hook)) => hook.clone(),
            ("Node", _) => Arc::new(NodeAuthorizer::new(reader.clone())),
            ("RBAC", _) => Arc::new(RbacAuthorizer::new(reader.clone())),
            ("AlwaysAllow", _) => Arc::new(Always::Allow),
            _ => Arc::new(Always::Deny),
        };
        authorizer
    };
    config.authorizers.iter().zip(hooks).map(one).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: AuthorizationArgs,
    }

    fn refused(args: &[&str]) -> String {
        let program = Program::parse_from(["x"].iter().chain(args));
        program
            .args
            .authorizers(&Default::default(), &Clock::system())
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn modes_that_are_none_or_lack_a_server_are_refused() {
        assert_eq!(refused(&[]), "");
        assert_eq!(refused(&["--authorization-mode", "RBAC,AlwaysAllow"]), "");
        assert!(refused(&["--authorization-mode", "Magic"]).contains("\"Magic\" is not a valid mode"));
        assert!(refused(&["--authorization-mode", "RBAC,RBAC"]).contains("more than once"));
        assert!(refused(&["--authorization-mode", "ABAC"]).contains("policy file not passed"));
        assert!(refused(&["--authorization-policy-file", "x"]).contains("without mode ABAC"));
        assert!(refused(&["--authorization-mode", "Webhook"]).contains("config file not passed"));
    }

    #[test]
    fn a_changed_file_keeps_the_types_of_the_first_and_their_names() {
        let file = |authorizers: &str| {
            let head =
                "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: ";
            format!("{head}{authorizers}\n")
        };
        let first = parse(&file("[{type: Node, name: node}, {type: RBAC, name: rbac}]"), &BTreeSet::new());
        let required = kinds(&first.unwrap());
        let refused = |authorizers: &str| parse(&file(authorizers), &required).unwrap_err();
        assert_eq!(refused("[{type: RBAC, name: rbac}]"), "missing required types: [Node]");
        let wrong =
            "[expected name rbac for authorizer RBAC instead of mine, missing required types: [Node]]";
        assert_eq!(refused("[{type: RBAC, name: mine}]"), wrong);
        let more =
            "[{type: RBAC, name: rbac}, {type: Node, name: node}, {type: AlwaysAllow, name: alwaysallow}]";
        assert!(parse(&file(more), &required).is_ok());
    }
}
