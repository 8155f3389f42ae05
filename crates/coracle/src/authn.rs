//! Flags of `coracle apiserver` that say who is believed, and what becomes of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args};
use coracle_apiserver::{Anonymous, Reload, RemoteClient, RemoteConfig, Tls};
use coracle_auth::oidc::config::{
    AnonymousConfig, AuthenticationConfiguration, ClaimMappings, ClaimRule, Issuer, JwtAuthenticator,
    PrefixedClaim,
};
use coracle_auth::oidc::{self, ALGORITHMS, Oidc};
use coracle_auth::static_token::StaticTokens;
use coracle_auth::token_webhook::TokenWebhook;
use coracle_auth::{Authenticator, FrontProxy};
use coracle_meta::cron::duration;
use coracle_stdx::Clock;

use crate::apiserver::read;
use crate::authz::check_kind;
use crate::error::Failure;
use crate::followed::{Followed, Refused};
use crate::following::Reloading;
use crate::remote;

/// How often the providers of a changed file are asked before it is given up for a while, and how far apart.
const TRIES: usize = 6;
const PAUSE: Duration = Duration::from_secs(10);

/// Proxies that say in headers for whom they ask, and how this server shows that it is one itself.
#[derive(Args, Clone, Debug)]
pub struct FrontProxyArgs {
    /// CA of proxies that say in headers for whom they ask.
    #[arg(long)]
    requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of the proxies that are believed; all of the CA when empty.
    #[arg(long, value_delimiter = ',')]
    requestheader_allowed_names: Vec<String>,
    /// Headers with the user's name, e.g. X-Remote-User.
    #[arg(long, value_delimiter = ',')]
    requestheader_username_headers: Vec<String>,
    /// Headers with the user's id, e.g. X-Remote-Uid.
    #[arg(long, value_delimiter = ',')]
    requestheader_uid_headers: Vec<String>,
    /// Headers with groups, e.g. X-Remote-Group.
    #[arg(long, value_delimiter = ',')]
    requestheader_group_headers: Vec<String>,
    /// What headers with extra attributes begin with, e.g. X-Remote-Extra-.
    #[arg(long, value_delimiter = ',')]
    requestheader_extra_headers_prefix: Vec<String>,
    /// Certificate shown to extension servers.
    #[arg(long, requires = "proxy_client_key_file")]
    proxy_client_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "proxy_client_cert_file")]
    proxy_client_key_file: Option<PathBuf>,
}

impl FrontProxyArgs {
    /// The proxies that are believed.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn proxies(&self) -> Result<Option<FrontProxy>, Failure> {
        let Some(ca) = &self.requestheader_client_ca_file else { return Ok(None) };
        Ok(Some(FrontProxy {
            ca_pem: read(ca)?,
            allowed_names: self.requestheader_allowed_names.clone(),
            username_headers: self.requestheader_username_headers.clone(),
            uid_headers: self.requestheader_uid_headers.clone(),
            group_headers: self.requestheader_group_headers.clone(),
            extra_prefixes: self.requestheader_extra_headers_prefix.clone(),
        }))
    }

    /// The certificate that this server shows to extension servers.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn own(&self) -> Result<Option<Tls>, Failure> {
        let (Some(cert), Some(key)) = (&self.proxy_client_cert_file, &self.proxy_client_key_file) else {
            return Ok(None);
        };
        Ok(Some(Tls { cert_pem: read(cert)?, key_pem: read(key)? }))
    }
}

/// Who is believed beside clients with certificates.
#[derive(Args, Clone, Debug)]
pub struct AuthenticationArgs {
    /// CSV file of static tokens: `token,user,uid,"group1,group2"`.
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    /// Whether requests without credentials are let in as `system:anonymous`.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    anonymous_auth: bool,
    /// Whether Secrets of type `bootstrap.kubernetes.io/token` in `kube-system` are tokens.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    enable_bootstrap_token_auth: bool,
    /// File that says which token providers are believed; read again when it changes.
    #[arg(long, conflicts_with = "oidc_issuer_url")]
    authentication_config: Option<PathBuf>,
    /// URL of an OpenID provider, https.
    #[arg(long, requires = "oidc_client_id")]
    oidc_issuer_url: Option<String>,
    /// The client that its tokens must be for.
    #[arg(long, requires = "oidc_issuer_url")]
    oidc_client_id: Option<String>,
    /// CA of the provider's certificate; the system's without.
    #[arg(long)]
    oidc_ca_file: Option<PathBuf>,
    /// Claim that is the user's name.
    #[arg(long, default_value = "sub")]
    oidc_username_claim: String,
    /// What names begin with: the issuer's URL and `#` unless given; `-` is nothing.
    #[arg(long, default_value = "")]
    oidc_username_prefix: String,
    /// Claim with the user's groups.
    #[arg(long, default_value = "")]
    oidc_groups_claim: String,
    /// What groups begin with.
    #[arg(long, default_value = "")]
    oidc_groups_prefix: String,
    /// A claim that tokens must have: `key=value`.
    #[arg(long, value_delimiter = ',')]
    oidc_required_claim: Vec<String>,
    /// Algorithms that tokens may be signed with.
    #[arg(long, value_delimiter = ',', default_value = "RS256", value_parser = ALGORITHMS)]
    oidc_signing_algs: Vec<String>,
    /// Kubeconfig of a server that knows tokens.
    #[arg(long)]
    authentication_token_webhook_config_file: Option<PathBuf>,
    /// Version of the reviews that it gets: v1 or v1beta1.
    #[arg(long, default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    authentication_token_webhook_version: String,
    /// How long its answers are believed.
    #[arg(long, default_value = "2m0s", value_parser = duration)]
    authentication_token_webhook_cache_ttl: Duration,
}

/// Authenticators behind certificates, and who is let in without credentials.
pub struct Authentication {
    /// Static tokens.
    pub tokens: Option<Arc<dyn Authenticator>>,
    /// Whether bootstrap tokens are taken.
    pub bootstrap_tokens: bool,
    /// Providers and webhooks, asked last.
    pub further: Vec<Arc<dyn Authenticator>>,
    /// Requests without credentials.
    pub anonymous: Anonymous,
}

impl Default for Authentication {
    /// Bootstrap tokens as kubeadm's clusters, nothing else.
    fn default() -> Self {
        Self { tokens: None, bootstrap_tokens: true, further: Vec::new(), anonymous: Anonymous::Everywhere }
    }
}

impl AuthenticationArgs {
    /// What the flags ask for; `audiences` are this server's, `issuer` that of its own tokens. `reload` tells what
    /// becomes of changes of the configuration file.
    ///
    /// # Errors
    /// Flags or files that cannot be used.
    pub fn read(
        &self,
        audiences: &[String],
        issuer: &str,
        clock: &Clock,
        reload: &Arc<Reload>,
    ) -> Result<Authentication, Failure> {
        let tokens = self.token_auth_file.as_deref().map(static_tokens).transpose()?;
        let disallowed = vec![issuer.to_owned()];
        let mut anonymous = if self.anonymous_auth { Anonymous::Everywhere } else { Anonymous::Nowhere };
        let mut further: Vec<Arc<dyn Authenticator>> = Vec::new();
        if let Some(path) = &self.authentication_config {
            let text = read(path)?;
            let failed = |why: String| {
                let what = format!(
                    "failed to load authentication configuration from file {:?}: {why}",
                    path.display()
                );
                Failure::new(what, "see apiserver.config.k8s.io/v1 AuthenticationConfiguration")
            };
            let config = parse(&text).map_err(failed)?;
            if let Some(given) = &config.anonymous {
                anonymous = allowed(given);
            }
            let first = config.anonymous.clone();
            let made = providers(config, &disallowed, &every_algorithm(), clock).map_err(failed)?;
            let followed = Followed::new(path.clone(), text, reload.clone(), clock.clone());
            let clock = clock.clone();
            let again = move |text| again(text, first.clone(), disallowed.clone(), clock.clone());
            further.push(Reloading::follow(followed, shared(made), again));
        } else if let Some(config) = self.flags()? {
            let made = providers(config, &disallowed, &self.oidc_signing_algs, clock);
            let made = made.map_err(|why| Failure::usage(format!("--oidc-issuer-url: {why}")))?;
            further.extend(shared(made));
        }
        if let Some(path) = &self.authentication_token_webhook_config_file {
            let (url, client) = remote::open(path)?;
            let version = &self.authentication_token_webhook_version;
            let ttl = self.authentication_token_webhook_cache_ttl;
            further.push(Arc::new(TokenWebhook::new(client, &url, version, audiences.to_vec(), ttl)));
        }
        Ok(Authentication { tokens, bootstrap_tokens: self.enable_bootstrap_token_auth, further, anonymous })
    }

    /// The provider that flags describe, as a configuration.
    fn flags(&self) -> Result<Option<AuthenticationConfiguration>, Failure> {
        let (Some(url), Some(client)) = (&self.oidc_issuer_url, &self.oidc_client_id) else {
            return Ok(None);
        };
        let text = |text: &str| Some(text.to_owned());
        let prefix = match self.oidc_username_prefix.as_str() {
            "-" => text(""),
            "" if self.oidc_username_claim != "email" => Some(format!("{url}#")),
            given => text(given),
        };
        let mut rules = Vec::new();
        for claim in &self.oidc_required_claim {
            let (claim, value) = claim.split_once('=').ok_or_else(|| {
                Failure::usage(format!("--oidc-required-claim {claim:?} is not of the form key=value"))
            })?;
            let (claim, required_value) = (claim.to_owned(), value.to_owned());
            rules.push(ClaimRule { claim, required_value, ..ClaimRule::default() });
        }
        let groups = match self.oidc_groups_claim.as_str() {
            "" => PrefixedClaim::default(),
            claim => PrefixedClaim {
                claim: claim.to_owned(),
                prefix: text(&self.oidc_groups_prefix),
                ..PrefixedClaim::default()
            },
        };
        let username =
            PrefixedClaim { claim: self.oidc_username_claim.clone(), prefix, ..PrefixedClaim::default() };
        let jwt = JwtAuthenticator {
            issuer: Issuer {
                url: url.clone(),
                audiences: vec![client.clone()],
                certificate_authority: self
                    .oidc_ca_file
                    .as_deref()
                    .map(read)
                    .transpose()?
                    .unwrap_or_default(),
                ..Issuer::default()
            },
            claim_validation_rules: rules,
            claim_mappings: ClaimMappings { username, groups, ..ClaimMappings::default() },
            ..JwtAuthenticator::default()
        };
        Ok(Some(AuthenticationConfiguration { jwt: vec![jwt], ..AuthenticationConfiguration::default() }))
    }
}

fn every_algorithm() -> Vec<String> {
    ALGORITHMS.map(str::to_owned).to_vec()
}

fn allowed(config: &AnonymousConfig) -> Anonymous {
    match (config.enabled, config.conditions.as_slice()) {
        (false, _) => Anonymous::Nowhere,
        (true, []) => Anonymous::Everywhere,
        (true, conditions) => Anonymous::At(conditions.iter().map(|c| c.path.clone()).collect()),
    }
}

fn parse(text: &str) -> Result<AuthenticationConfiguration, String> {
    let config: AuthenticationConfiguration = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    check_kind(&config.api_version, &config.kind, "AuthenticationConfiguration")?;
    Ok(config)
}

/// The providers of a changed file, once they have told their keys. Who is let in without credentials stays.
async fn again(
    text: String,
    first: Option<AnonymousConfig>,
    disallowed: Vec<String>,
    clock: Clock,
) -> Result<Option<Vec<Arc<dyn Authenticator>>>, Refused> {
    let config = parse(&text).map_err(Refused::Bad)?;
    if config.anonymous != first {
        let mut errs = oidc::validate(&config, &disallowed).err().unwrap_or_default();
        errs.forbidden("anonymous", "changed from initial configuration file");
        return Err(Refused::Bad(errs.aggregate()));
    }
    let made = providers(config, &disallowed, &every_algorithm(), &clock).map_err(Refused::Bad)?;
    let mut tries = 0..TRIES;
    for provider in &made {
        while let Err(why) = provider.ready().await {
            if tries.next().is_none() {
                return Err(Refused::NotYet(why));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(Some(shared(made)))
}

fn shared(providers: Vec<Arc<Oidc>>) -> Vec<Arc<dyn Authenticator>> {
    providers.into_iter().map(|provider| provider as Arc<dyn Authenticator>).collect()
}

/// The providers of a configuration.
fn providers(
    config: AuthenticationConfiguration,
    disallowed: &[String],
    algorithms: &[String],
    clock: &Clock,
) -> Result<Vec<Arc<Oidc>>, String> {
    let compiled = oidc::validate(&config, disallowed).map_err(|errs| errs.aggregate())?;
    let mut made = Vec::new();
    for (jwt, compiled) in config.jwt.into_iter().zip(compiled) {
        let ca = Some(jwt.issuer.certificate_authority.clone()).filter(|ca| !ca.is_empty());
        let client = RemoteClient::new(&RemoteConfig { ca_pem: ca, ..RemoteConfig::default() })?;
        made.push(Arc::new(Oidc::new(jwt, compiled, algorithms.to_vec(), Arc::new(client), clock.clone())));
    }
    Ok(made)
}

fn static_tokens(path: &Path) -> Result<Arc<dyn Authenticator>, Failure> {
    let tokens = StaticTokens::parse(&read(path)?).map_err(|e| {
        Failure::new(format!("{}: {e}", path.display()), "each line is token,user,uid,\"group1,group2\"")
    })?;
    Ok(Arc::new(tokens))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: AuthenticationArgs,
    }

    fn args(list: &[&str]) -> AuthenticationArgs {
        Program::parse_from(["x"].iter().chain(list)).args
    }

    #[test]
    fn flags_describe_a_provider_whose_names_begin_with_its_url() {
        let given =
            ["--oidc-issuer-url", "https://i", "--oidc-client-id", "me", "--oidc-required-claim", "a=b"];
        let config = args(&given).flags().unwrap().unwrap();
        let jwt = &config.jwt[0];
        assert_eq!(jwt.claim_mappings.username.prefix.as_deref(), Some("https://i#"));
        assert_eq!(jwt.claim_validation_rules[0].required_value, "b");
        let bare = args(&[&given[..4], &["--oidc-username-prefix", "-"]].concat()).flags().unwrap().unwrap();
        assert_eq!(bare.jwt[0].claim_mappings.username.prefix.as_deref(), Some(""));
    }

    #[test]
    fn a_file_says_where_anonymous_requests_are_let_in() {
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n\
            anonymous: {enabled: true, conditions: [{path: /livez}]}\n";
        let given = parse(text).unwrap().anonymous.unwrap();
        assert_eq!(allowed(&given), Anonymous::At(vec!["/livez".into()]));
        assert!(
            parse("apiVersion: v1\nkind: AuthenticationConfiguration\n").unwrap_err().contains("no kind")
        );
    }
}
