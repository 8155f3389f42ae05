//! Image credential provider plug-ins (credentialprovider.kubelet.k8s.io/v1): programs that know the credentials of a
//! registry's images. Called once per image, registry or altogether, as they say, and with a token of the pod's service
//! account where they are configured so. See
//! <https://kubernetes.io/docs/tasks/administer-cluster/kubelet-credential-provider/>.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use coracle_cri::v1::AuthConfig;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::Mutex;
use tracing::warn;

use crate::context::Context;
use crate::keyring::{self, Entry};
use crate::names;

/// The version of requests and answers.
const VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";
/// How long a plug-in may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer that is read.
const LONGEST: u64 = 1 << 20;
/// Life of a service account's token in seconds.
const TOKEN_LIFE: i64 = 3600;

/// One provider of a `CredentialProviderConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Provider {
    /// Name of the program.
    pub name: String,
    /// Which images it knows of.
    pub match_images: Vec<String>,
    /// How long an answer holds that does not say so, as Go writes durations.
    pub default_cache_duration: String,
    /// The version that it speaks.
    pub api_version: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Variables beyond the kubelet's own.
    pub env: Vec<Variable>,
    /// Whether and how it gets tokens.
    pub token_attributes: Option<TokenAttributes>,
}

/// An environment variable.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// How a provider gets tokens of service accounts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TokenAttributes {
    /// Whom the tokens are for.
    pub service_account_token_audience: String,
    /// `Token` or `ServiceAccount`: for whom answers hold.
    pub cache_type: String,
    /// Pods without an account are none of its business.
    pub require_service_account: bool,
    /// Accounts without these annotations are none of its business.
    pub required_service_account_annotation_keys: Vec<String>,
    /// Annotations that it is told too.
    pub optional_service_account_annotation_keys: Vec<String>,
}

/// Reads a `CredentialProviderConfig`.
///
/// # Errors
/// It is none, or says what cannot be.
pub fn parse(text: &str) -> Result<Vec<Provider>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct File {
        kind: String,
        api_version: String,
        #[serde(default)]
        providers: Vec<Provider>,
    }
    let file: File = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    if file.kind != "CredentialProviderConfig" || file.api_version != "kubelet.config.k8s.io/v1" {
        return Err("it is no CredentialProviderConfig of kubelet.config.k8s.io/v1".into());
    }
    for provider in &file.providers {
        let wrong = |what: &str| Err(format!("provider {:?}: {what}", provider.name));
        if provider.name.is_empty() || provider.name.contains(['/', ' ']) || provider.name.starts_with('.') {
            return wrong("name must be that of a program");
        }
        if provider.match_images.is_empty() {
            return wrong("matchImages must name some images");
        }
        if provider.api_version != VERSION {
            return wrong(&format!("apiVersion must be {VERSION}"));
        }
        if coracle_meta::cron::duration(&provider.default_cache_duration).is_err() {
            return wrong("defaultCacheDuration must be a duration");
        }
        let tokens = provider.token_attributes.as_ref();
        if tokens.is_some_and(|t| t.service_account_token_audience.is_empty()) {
            return wrong("tokenAttributes.serviceAccountTokenAudience must be set");
        }
        if tokens.is_some_and(|t| !matches!(t.cache_type.as_str(), "Token" | "ServiceAccount")) {
            return wrong("tokenAttributes.cacheType must be Token or ServiceAccount");
        }
    }
    Ok(file.providers)
}

/// What a plug-in answers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Answer {
    api_version: String,
    cache_key_type: String,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, Credentials>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Credentials {
    username: String,
    password: String,
}

/// The account whose pod wants an image.
#[derive(Clone, Debug, Default)]
struct Account {
    token: String,
    annotations: BTreeMap<String, String>,
    /// What answers for it are kept under.
    key: String,
}

/// Answers by what they are for.
type Cache = BTreeMap<String, (Timestamp, Vec<Entry>)>;

/// The configured plug-ins.
#[derive(Debug, Default)]
pub struct CredentialPlugins {
    directory: PathBuf,
    /// Each asked once at a time.
    providers: Vec<(Provider, Mutex<Cache>)>,
}

/// An image's repository in full, as plug-ins are told it.
fn repository(image: &str) -> String {
    let image = image.split('@').next().unwrap_or(image);
    let (folder, last) = image.rsplit_once('/').unwrap_or(("", image));
    let last = last.split(':').next().unwrap_or(last);
    match folder.split('/').next().filter(|f| f.contains(['.', ':']) || *f == "localhost") {
        Some(_) => format!("{folder}/{last}"),
        None if folder.is_empty() => format!("docker.io/library/{last}"),
        None => format!("docker.io/{folder}/{last}"),
    }
}

impl CredentialPlugins {
    /// Plug-ins whose programs are in a directory.
    #[must_use]
    pub fn new(directory: PathBuf, providers: Vec<Provider>) -> Self {
        let providers = providers.into_iter().map(|p| (p, Mutex::default())).collect();
        Self { directory, providers }
    }

    /// The credentials that plug-ins know for a pod's image; those that fail are named in the log.
    pub async fn lookup(&self, cx: &Context, pod: &Pod, image: &str) -> Vec<AuthConfig> {
        let image = repository(image);
        let mut entries = Vec::new();
        for (provider, cache) in &self.providers {
            let knows = |place: &String| keyring::entry(place, "", "").fits(&image);
            if !provider.match_images.iter().any(knows) {
                continue;
            }
            let account = match account(cx, pod, provider).await {
                Ok(Some(account)) => account,
                Ok(None) => continue,
                Err(error) => {
                    warn!(provider = provider.name, error, "no token for a credential provider");
                    continue;
                }
            };
            let mut cache = cache.lock().await;
            match self.ask(provider, &mut cache, &image, &account, cx.clock.now()).await {
                Ok(found) => entries.extend(found),
                Err(error) => warn!(provider = provider.name, image, error, "no credentials"),
            }
        }
        keyring::lookup(&entries, &image)
    }

    /// What a plug-in says, or has said.
    async fn ask(
        &self,
        provider: &Provider,
        cache: &mut Cache,
        image: &str,
        account: &Account,
        now: Timestamp,
    ) -> Result<Vec<Entry>, String> {
        cache.retain(|_, (until, _)| *until > now);
        let registry = image.split('/').next().unwrap_or(image);
        let key = |of: &str| format!("{of}\n{}", account.key);
        if let Some((_, entries)) = [image, registry, ""].iter().find_map(|of| cache.get(&key(of))) {
            return Ok(entries.clone());
        }
        let answer = self.run(provider, image, account).await?;
        let by_token = provider.token_attributes.as_ref().is_some_and(|t| t.cache_type == "Token");
        let auth = answer.auth.unwrap_or_default();
        if !account.token.is_empty() && !by_token && auth.values().any(|c| c.password == account.token) {
            return Err(
                "credential provider plugin returned the service account token as the password which is \
                        not allowed when service account cache type is not set to 'Token'"
                    .into(),
            );
        }
        let of = match answer.cache_key_type.as_str() {
            "Image" => image,
            "Registry" => registry,
            "Global" => "",
            other => {
                return Err(format!(
                    "credential provider plugin did not return a valid cacheKeyType: {other}"
                ));
            }
        };
        let entry = |(place, c): (&String, &Credentials)| keyring::entry(place, &c.username, &c.password);
        let entries: Vec<Entry> = auth.iter().map(entry).collect();
        let lasts = answer.cache_duration.as_ref().unwrap_or(&provider.default_cache_duration);
        let lasts = coracle_meta::cron::duration(lasts)?;
        if !lasts.is_zero() {
            let seconds = i64::try_from(lasts.as_secs()).unwrap_or(i64::MAX);
            cache.insert(key(of), (crate::pod::after(now, seconds), entries.clone()));
        }
        Ok(entries)
    }

    async fn run(&self, provider: &Provider, image: &str, account: &Account) -> Result<Answer, String> {
        let mut request = json!({"kind": "CredentialProviderRequest", "apiVersion": VERSION, "image": image});
        if !account.token.is_empty() {
            request["serviceAccountToken"] = account.token.clone().into();
        }
        if !account.annotations.is_empty() {
            request["serviceAccountAnnotations"] = json!(account.annotations);
        }
        let mut child = Command::new(self.directory.join(&provider.name))
            .args(&provider.args)
            .envs(provider.env.iter().map(|v| (&v.name, &v.value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("error execing credential provider plugin {}: {e}", provider.name))?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let talk = async {
            let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
            let say = async {
                if let Some(mut input) = input {
                    // One that does not read it may answer all the same.
                    let _ = input.write_all(request.to_string().as_bytes()).await;
                }
            };
            let hear = async {
                if let Some(output) = output {
                    let _ = output.take(LONGEST).read_to_end(&mut out).await;
                }
            };
            let complain = async {
                if let Some(errors) = errors {
                    let _ = errors.take(LONGEST).read_to_end(&mut err).await;
                }
            };
            tokio::join!(say, hear, complain);
            child.wait().await
        };
        let ended = tokio::time::timeout(PATIENCE, talk).await;
        let failed =
            |why: String| format!("error execing credential provider plugin {}: {why}", provider.name);
        match ended {
            Err(_) => return Err(failed("context deadline exceeded".into())),
            Ok(Err(e)) => return Err(failed(e.to_string())),
            Ok(Ok(status)) if !status.success() => {
                return Err(failed(format!("{status}: {}", String::from_utf8_lossy(&err).trim())));
            }
            Ok(Ok(_)) => {}
        }
        // What it is is not told: it may hold credentials.
        let value: Value = serde_json::from_slice(&out)
            .map_err(|_| "error decoding credential provider plugin response from stdout".to_owned())?;
        let answer: Answer = serde_json::from_value(value)
            .map_err(|_| "error decoding credential provider plugin response from stdout".to_owned())?;
        if answer.api_version != VERSION {
            return Err(format!(
                "apiVersion from credential plugin response did not match expected apiVersion:{VERSION}, actual \
                 apiVersion:{}",
                answer.api_version
            ));
        }
        Ok(answer)
    }
}

/// What a plug-in is told of the pod's account; `None` if the pod is none of its business.
async fn account(cx: &Context, pod: &Pod, provider: &Provider) -> Result<Option<Account>, String> {
    let Some(wanted) = &provider.token_attributes else { return Ok(Some(Account::default())) };
    let name = crate::pod::spec(pod).service_account_name.as_deref().unwrap_or("");
    if name.is_empty() {
        return Ok((!wanted.require_service_account).then(Account::default));
    }
    let namespace = names::namespace(pod);
    let object = cx.client.api::<ServiceAccount>().get(namespace, name).await;
    let object = object.map_err(|e| format!("failed to get service account: {e}"))?;
    let has = object.metadata.annotations.clone().unwrap_or_default();
    if wanted.required_service_account_annotation_keys.iter().any(|k| !has.contains_key(k)) {
        return Ok(None);
    }
    let told = wanted
        .required_service_account_annotation_keys
        .iter()
        .chain(&wanted.optional_service_account_annotation_keys);
    let annotations: BTreeMap<String, String> =
        told.filter_map(|k| Some((k.clone(), has.get(k)?.clone()))).collect();
    let audience = Some(wanted.service_account_token_audience.as_str());
    let token = cx.tokens.get(pod, audience, TOKEN_LIFE).await;
    let token = token.map_err(|e| format!("failed to get service account token: {e}"))?.token.clone();
    let mut key = json!([namespace, name, object.metadata.uid, annotations]).to_string();
    if wanted.cache_type == "Token" {
        key.push_str(&coracle_stdx::hex(&Sha256::digest(&token)));
    }
    Ok(Some(Account { token, annotations, key }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn plugins_are_told_repositories_in_full() {
        assert_eq!(repository("busybox:1"), "docker.io/library/busybox");
        assert_eq!(repository("team/app@sha256:1"), "docker.io/team/app");
        assert_eq!(repository("r.io:5000/team/app:2"), "r.io:5000/team/app");
        assert_eq!(repository("localhost/app"), "localhost/app");
    }

    #[test]
    fn a_configuration_that_cannot_be_is_refused_by_name() {
        let head = "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders:\n";
        let with = |fields: &str| parse(&format!("{head}- {{name: p, {fields}}}\n"));
        let good = format!("matchImages: [r.io], defaultCacheDuration: 1m, apiVersion: {VERSION}");
        assert_eq!(with(&good).map(|p| p.len()), Ok(1));
        assert!(with(&good.replace("[r.io]", "[]")).unwrap_err().contains("matchImages"));
        assert!(with(&good.replace("/v1", "/v2")).unwrap_err().contains("apiVersion"));
        assert!(parse("kind: Pod\napiVersion: v1\n").is_err());
    }

    fn plugin(directory: &std::path::Path, answer: &str) -> CredentialPlugins {
        let script = format!(
            "#!/bin/sh\necho x >> {0}/calls\ncat > {0}/request\ncat <<END\n{answer}\nEND\n",
            directory.display()
        );
        let path = directory.join("p");
        std::fs::write(&path, script).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        let provider = Provider {
            name: "p".into(),
            match_images: vec!["*.io".into()],
            default_cache_duration: "10m".into(),
            api_version: VERSION.into(),
            ..Provider::default()
        };
        CredentialPlugins::new(directory.to_owned(), vec![provider])
    }

    #[tokio::test]
    async fn an_answer_holds_for_its_registry_until_its_time_is_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let answer = json!({"kind": "CredentialProviderResponse", "apiVersion": VERSION, "cacheKeyType": "Registry",
            "cacheDuration": "1m0s", "auth": {"r.io": {"username": "u", "password": "p"}}});
        let plugins = plugin(dir.path(), &answer.to_string());
        let (provider, cache) = &plugins.providers[0];
        let at = |s: i64| Timestamp::from_second(s).expect("a time");
        let none = Account::default();
        let mut users = Vec::new();
        for (image, when) in [("r.io/a", 0), ("r.io/b", 59), ("r.io/a", 61)] {
            let mut cache = cache.lock().await;
            let found = plugins.ask(provider, &mut cache, image, &none, at(when)).await.expect("an answer");
            users.extend(keyring::lookup(&found, image).into_iter().map(|a| a.username));
        }
        assert_eq!(users, ["u", "u", "u"]);
        let calls = std::fs::read_to_string(dir.path().join("calls")).expect("calls");
        assert_eq!(calls.lines().count(), 2, "the second was answered from memory");
        let request = std::fs::read_to_string(dir.path().join("request")).expect("a request");
        let request: Value = serde_json::from_str(&request).expect("JSON");
        assert_eq!(request["image"], "r.io/a");
    }

    #[tokio::test]
    async fn a_plugin_that_fails_or_answers_nonsense_is_told_of() {
        let dir = tempfile::tempdir().expect("a directory");
        let ask = async |answer: &str| {
            let plugins = plugin(dir.path(), answer);
            let (provider, cache) = &plugins.providers[0];
            let mut cache = cache.lock().await;
            let account = Account::default();
            plugins.ask(provider, &mut cache, "r.io/a", &account, Timestamp::UNIX_EPOCH).await.unwrap_err()
        };
        assert!(ask("nonsense").await.contains("error decoding"));
        assert!(ask(r#"{"apiVersion": "v9"}"#).await.contains("did not match expected apiVersion"));
        let key = format!(r#"{{"apiVersion": "{VERSION}", "cacheKeyType": "Moon"}}"#);
        assert!(ask(&key).await.contains("valid cacheKeyType: Moon"));
    }
}
