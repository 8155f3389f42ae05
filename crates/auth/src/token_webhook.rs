//! Tokens that a server elsewhere knows: it is sent a TokenReview.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::remote::{Answers, Remote, review};
use crate::user::{Authenticator, AuthnError, Credentials, UserInfo};

/// Longest wait for one answer.
const WAIT: Duration = Duration::from_secs(30);

/// A server that is asked about tokens.
pub struct TokenWebhook {
    remote: Arc<dyn Remote>,
    url: String,
    /// `v1` or `v1beta1`.
    version: String,
    audiences: Vec<String>,
    ttl: Duration,
    known: Answers<[u8; 32], Verdict>,
}

type Verdict = Result<Option<(UserInfo, Vec<String>)>, AuthnError>;

impl TokenWebhook {
    /// `audiences` are those of the API server; an answer is believed for `ttl`.
    pub fn new(
        remote: Arc<dyn Remote>,
        url: &str,
        version: &str,
        audiences: Vec<String>,
        ttl: Duration,
    ) -> Self {
        let (url, version) = (url.to_owned(), version.to_owned());
        Self { remote, url, version, audiences, ttl, known: Answers::default() }
    }

    async fn ask(&self, token: &str, wanted: &[String], own: &[String]) -> Verdict {
        let key: [u8; 32] = Sha256::digest(format!("{}\0{token}", wanted.join("\0"))).into();
        if let Some(known) = self.known.get(&key) {
            return known;
        }
        let mut asked = json!({
            "apiVersion": format!("authentication.k8s.io/{}", self.version), "kind": "TokenReview",
            "metadata": {}, "spec": { "token": token }, "status": { "user": {} },
        });
        if !wanted.is_empty() {
            asked["spec"]["audiences"] = json!(wanted);
        }
        // A server that fails may know better in a moment: only its answers are remembered.
        let answer = review(&*self.remote, &self.url, &asked, WAIT).await.map_err(AuthnError)?;
        let verdict = read(&answer["status"], wanted, own);
        self.known.put(key, verdict.clone(), self.ttl);
        verdict
    }
}

#[async_trait]
impl Authenticator for TokenWebhook {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Option<UserInfo>, AuthnError> {
        let Some(token) = credentials.bearer.as_deref().filter(|t| !t.is_empty()) else { return Ok(None) };
        let known = self.ask(token, &self.audiences, &self.audiences).await?;
        Ok(known.map(|(user, _)| user))
    }

    async fn review(
        &self,
        token: &str,
        wanted: &[String],
        own: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, AuthnError> {
        self.ask(token, wanted, own).await
    }
}

/// What the status of a review says: the user, and which of the audiences the token serves.
fn read(status: &Value, wanted: &[String], own: &[String]) -> Verdict {
    let list = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let said = list(&status["audiences"]);
    let served = if said.is_empty() { own } else { &said };
    let both: Vec<String> = wanted.iter().filter(|a| served.contains(a)).cloned().collect();
    if both.is_empty() && !wanted.is_empty() {
        return Ok(None);
    }
    if status["authenticated"] != true {
        return match status["error"].as_str().filter(|e| !e.is_empty()) {
            Some(why) => Err(AuthnError(why.to_owned())),
            None => Ok(None),
        };
    }
    let user = &status["user"];
    let text = |field: &str| user[field].as_str().unwrap_or("").to_owned();
    let groups = list(&user["groups"]);
    let groups: Vec<&str> =
        groups.iter().map(String::as_str).filter(|g| *g != "system:authenticated").collect();
    let mut known = UserInfo::authenticated(&text("username"), &groups);
    known.uid = text("uid");
    let extra = user["extra"].as_object().into_iter().flatten();
    known.extra = extra.map(|(key, values)| (key.clone(), list(values))).collect();
    Ok(Some((known, both)))
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::remote::Exchange;

    struct Told(Mutex<Vec<Value>>, Value);

    #[async_trait]
    impl Remote for Told {
        async fn exchange(&self, _: &str, sent: Exchange<'_>) -> Result<(u16, Vec<u8>), String> {
            let Exchange::Post(body) = sent else { panic!("{sent:?}") };
            self.0.lock().push(serde_json::from_slice(&body).expect("JSON"));
            Ok((200, json!({ "status": self.1 }).to_string().into_bytes()))
        }
    }

    #[tokio::test]
    async fn a_token_is_asked_about_once_and_stands_for_whom_the_server_names() {
        let status = json!({ "authenticated": true, "user": { "username": "jane", "uid": "7",
            "groups": ["devs"], "extra": { "k": ["v"] } } });
        let told = Arc::new(Told(Mutex::default(), status));
        let own = vec!["api".to_owned()];
        let hook = TokenWebhook::new(told.clone(), "https://h/", "v1", own, Duration::from_secs(60));
        let credentials = Credentials { bearer: Some("t".into()), ..Credentials::default() };
        for _ in 0..2 {
            let user = hook.authenticate(&credentials).await.expect("known").expect("a user");
            assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane", "7"));
            assert_eq!(user.groups, ["devs", "system:authenticated"]);
        }
        let asked = told.0.lock();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0]["spec"], json!({ "token": "t", "audiences": ["api"] }));
    }

    #[test]
    fn other_audiences_and_refusals_are_no_identity() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let yes = json!({ "authenticated": true, "audiences": ["a"], "user": { "username": "u" } });
        let served = read(&yes, &list(&["a", "b"]), &[]).expect("valid").expect("a user").1;
        assert_eq!(served, ["a"]);
        assert_eq!(read(&yes, &list(&["b"]), &list(&["b"])).expect("no error"), None);
        let no = json!({ "authenticated": false, "error": "expired" });
        assert_eq!(read(&no, &[], &[]).expect_err("refused").to_string(), "expired");
    }
}
