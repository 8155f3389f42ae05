//! Configuration files that change under a running `coracle apiserver`: what they say takes effect, what cannot be
//! used leaves in force what was, and metrics tell of both.

use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_testkit::{Background, Machine, Output, coracle, kubectl, retry, run};

const PORT: u16 = 7001;
/// Another server, which is the provider of tokens.
const PROVIDER: u16 = 7002;

struct Place {
    machine: Machine,
    tokens: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        let machine = Machine::new(name);
        let tokens = "admintoken,admin,admin,\"system:masters\"\nbobtoken,bob,bob\n";
        let tokens = machine.file("tokens.csv", tokens);
        Self { machine, tokens }
    }

    /// A server with these flags beside the usual ones, once it is ready.
    fn server(&self, port: u16, flags: &[(&str, &Path)]) -> Background {
        let mut command = self.machine.lasting(&coracle());
        command.args(["apiserver", "--secure-port", &port.to_string(), "--data-dir"]);
        command.arg(self.machine.data(&port.to_string())).arg("--token-auth-file").arg(&self.tokens);
        for (flag, value) in flags {
            command.arg(flag).arg(value);
        }
        let server = self.machine.background(&format!("server-{port}"), &mut command);
        retry("the API server is ready", 60, || {
            let ready = self.kubectl(port, "admintoken", &["get", "--raw", "/readyz"]);
            (ready.status == 0).then_some(()).ok_or(ready.stderr)
        });
        server
    }

    fn kubectl(&self, port: u16, token: &str, args: &[&str]) -> Output {
        let mut command: Command = self.machine.command(&kubectl());
        command.args(["--insecure-skip-tls-verify", "--token", token]);
        run(command.arg(format!("--server=https://127.0.0.1:{port}")).args(args))
    }

    /// Replaces a file at once, as those do who change a configuration in force.
    fn write(&self, name: &str, content: &str) -> PathBuf {
        let new = self.machine.file("new", content);
        let path = self.machine.dir().join(name);
        std::fs::rename(new, &path).expect("renamed");
        path
    }

    /// Waits until a file was taken up, or refused, so often.
    fn counted(&self, file: &str, status: &str, times: u64) {
        let metric = format!(
            "apiserver_{file}_config_controller_automatic_reloads_total{{apiserver_id_hash=\"\",status=\"{status}\"}} "
        );
        retry(&format!("{file}: {status} {times}"), 60, || {
            let metrics = self.kubectl(PORT, "admintoken", &["get", "--raw", "/metrics"]).ok();
            let line = metrics.lines().find_map(|l| l.strip_prefix(&metric)).unwrap_or("0").to_owned();
            if line == times.to_string() { Ok(()) } else { Err(format!("counted {line}")) }
        });
    }

    fn bob_may_read_secrets(&self) -> bool {
        self.kubectl(PORT, "bobtoken", &["get", "secrets"]).status == 0
    }
}

fn config(kind: &str, rest: &str) -> String {
    format!("apiVersion: apiserver.config.k8s.io/v1\nkind: {kind}\n{rest}\n")
}

#[test]
fn authorizers_follow_their_file_and_a_bad_one_leaves_those_in_force() {
    let place = Place::new("authz");
    let write = |authorizers: &str| {
        place.write(
            "authz.yaml",
            &config("AuthorizationConfiguration", &format!("authorizers: {authorizers}")),
        )
    };
    const FIRST: &str = "[{type: Node, name: node}, {type: RBAC, name: rbac}]";
    let file = write(FIRST);
    let _server = place.server(PORT, &[("--authorization-config", &file)]);
    assert!(!place.bob_may_read_secrets());

    write("[{type: Node, name: node}, {type: RBAC, name: rbac}, {type: AlwaysAllow, name: alwaysallow}]");
    place.counted("authorization", "success", 1);
    assert!(place.bob_may_read_secrets());

    write("[{type: AlwaysDeny, name: alwaysdeny}]");
    place.counted("authorization", "failure", 1);
    place.write("authz.yaml", "nonsense: [");
    place.counted("authorization", "failure", 2);
    assert!(place.bob_may_read_secrets(), "what was read stays in force");

    write(FIRST);
    place.counted("authorization", "success", 2);
    assert!(!place.bob_may_read_secrets());
    // Other words for the same are no change.
    write(&format!("{FIRST} # as before"));
    write("[]");
    place.counted("authorization", "failure", 3);
    place.counted("authorization", "success", 2);
}

#[test]
fn providers_of_tokens_follow_their_file_and_who_is_anonymous_does_not() {
    let place = Place::new("authn");
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let cert_file = place.machine.file("tls.crt", &cert);
    let key_file = place.machine.file("tls.key", &key);
    let url = format!("https://127.0.0.1:{PROVIDER}");
    let flags = [
        ("--tls-cert-file", cert_file.as_path()),
        ("--tls-private-key-file", &key_file),
        ("--service-account-issuer", Path::new(&url)),
        ("--advertise-address", Path::new("127.0.0.1")),
    ];
    let _provider = place.server(PROVIDER, &flags);
    let admin = |args: &[&str]| place.kubectl(PROVIDER, "admintoken", args).ok();
    let role = "--clusterrole=system:service-account-issuer-discovery";
    admin(&["create", "clusterrolebinding", "all-may-discover", role, "--group=system:unauthenticated"]);
    admin(&["create", "serviceaccount", "robot"]);
    let token = admin(&["create", "token", "robot", "--audience=here"]);
    let whoami = || {
        place.kubectl(PORT, token.trim(), &["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])
    };

    let write = |anonymous: &str, jwt: &str| {
        let rest = format!("anonymous: {anonymous}\njwt: {jwt}");
        place.write("authn.yaml", &config("AuthenticationConfiguration", &rest))
    };
    let provider = |at: &str| {
        let pem: String = cert.lines().map(|line| format!("\n      {line}")).collect();
        format!(
            "\n- issuer:\n    url: {at}\n    audiences: [here]\n    certificateAuthority: |{pem}\n  claimMappings: \
             {{username: {{claim: sub, prefix: 'far:'}}}}"
        )
    };
    const ANONYMOUS: &str = "{enabled: true, conditions: [{path: /livez}]}";
    let file = write(ANONYMOUS, "[]");
    let _server = place.server(PORT, &[("--authentication-config", &file)]);
    whoami().fails();

    write(ANONYMOUS, &provider(&url));
    place.counted("authentication", "success", 1);
    assert_eq!(whoami().ok(), "far:system:serviceaccount:default:robot");

    write("{enabled: true}", "[]");
    place.counted("authentication", "failure", 1);
    write(ANONYMOUS, &provider("http://127.0.0.1"));
    place.counted("authentication", "failure", 2);
    assert_eq!(whoami().ok(), "far:system:serviceaccount:default:robot", "what was read stays in force");

    write(ANONYMOUS, "[]");
    place.counted("authentication", "success", 2);
    // Tokens are believed for ten seconds without asking.
    retry("the provider is not believed any more", 60, || match whoami() {
        Output { status: 0, stdout, .. } => Err(stdout),
        _ => Ok(()),
    });
}

#[test]
fn encryption_follows_its_file_and_a_bad_one_leaves_what_is_in_force() {
    let place = Place::new("crypt");
    let write = |providers: &str| {
        let rest = format!("resources:\n- resources: [secrets]\n  providers: {providers}");
        place.write("encryption.yaml", &config("EncryptionConfiguration", &rest))
    };
    let key = |name: &str| {
        let secret = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
        format!("{{aesgcm: {{keys: [{{name: {name}, secret: {secret}}}]}}}}")
    };
    let file = write(&format!("[{}]", key("one")));
    let reload = ("--encryption-provider-config-automatic-reload=true", Path::new("--anonymous-auth=true"));
    let server = place.server(PORT, &[("--encryption-provider-config", &file), reload]);
    let admin = |args: &[&str]| place.kubectl(PORT, "admintoken", args).ok();
    admin(&["create", "secret", "generic", "first"]);

    write(&format!("[{}, {}]", key("two"), key("one")));
    place.counted("encryption", "success", 1);
    admin(&["create", "secret", "generic", "second"]);

    write("[{aesgcm: {keys: [{name: three, secret: short}]}}]");
    place.counted("encryption", "failure", 1);
    admin(&["create", "secret", "generic", "third"]);
    admin(&["get", "secrets", "first", "second", "third"]);
    drop(server);
    for (name, key) in [("first", "one"), ("second", "two"), ("third", "two")] {
        let head = format!("/registry/core/secrets/default/{name}");
        let mark = format!("k8s:enc:aesgcm:v1:{key}:");
        assert!(stored(&place.machine.data(&PORT.to_string()), &head, &mark), "{name} with {key}");
    }
}

/// Whether a file below a directory has the second text soon after the first.
fn stored(dir: &Path, head: &str, mark: &str) -> bool {
    std::fs::read_dir(dir).expect("a directory").any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return stored(&path, head, mark);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        let heads = bytes.windows(head.len()).enumerate().filter(|(_, w)| *w == head.as_bytes());
        heads
            .map(|(at, _)| &bytes[at..bytes.len().min(at + 200)])
            .any(|rest| rest.windows(mark.len()).any(|w| w == mark.as_bytes()))
    })
}
