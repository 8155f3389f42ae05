//! The static token file: CSV lines `token,user,uid[,"group1,group2"]`.

use std::collections::HashMap;

use async_trait::async_trait;
use tracing::warn;

use crate::user::{Authenticator, AuthnError, Credentials, UserInfo};

/// Bearer tokens read once at the start.
#[derive(Debug, Default)]
pub struct StaticTokens(HashMap<String, UserInfo>);

impl StaticTokens {
    /// Reads the file's text. Of several lines with one token the last counts, as upstream.
    ///
    /// # Errors
    /// A line with fewer than three columns or with broken quoting.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = HashMap::new();
        for (n, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let columns = columns(line).ok_or_else(|| format!("line {}: a quote is not closed", n + 1))?;
            let [token, name, uid, rest @ ..] = columns.as_slice() else {
                return Err(format!(
                    "line {}: must have at least 3 columns (token, user name, user uid), found {}",
                    n + 1,
                    columns.len()
                ));
            };
            if token.is_empty() {
                warn!(line = n + 1, "empty token in the token file, line skipped");
                continue;
            }
            let groups = rest.first().map_or("", String::as_str);
            let groups: Vec<&str> = groups.split(',').map(str::trim).filter(|g| !g.is_empty()).collect();
            let mut user = UserInfo::authenticated(name, &groups);
            user.uid.clone_from(uid);
            tokens.insert(token.clone(), user);
        }
        Ok(Self(tokens))
    }
}

/// The columns of a CSV line; a quote inside a quoted column is doubled.
fn columns(line: &str) -> Option<Vec<String>> {
    let mut columns = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let column = columns.last_mut()?;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                column.push('"');
            }
            '"' if quoted || column.is_empty() => quoted = !quoted,
            ',' if !quoted => columns.push(String::new()),
            c => column.push(c),
        }
    }
    (!quoted).then_some(columns)
}

#[async_trait]
impl Authenticator for StaticTokens {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Option<UserInfo>, AuthnError> {
        Ok(credentials.bearer.as_ref().and_then(|token| self.0.get(token)).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_follow_csv_quoting() {
        let tokens =
            StaticTokens::parse("t1,admin,u1,\"system:masters,devs\"\n\nt2,bob,2\n").expect("parses");
        assert_eq!(tokens.0["t1"].groups, ["system:masters", "devs", "system:authenticated"]);
        assert_eq!((tokens.0["t2"].name.as_str(), tokens.0["t2"].uid.as_str()), ("bob", "2"));
        assert!(StaticTokens::parse("t,only").expect_err("short").contains("found 2"));
        assert!(StaticTokens::parse("t,a,b,\"open").is_err());
        assert_eq!(columns("a,\"b\"\"c\",d").expect("columns"), ["a", "b\"c", "d"]);
    }
}
