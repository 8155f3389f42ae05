//! How the parser reports and survives a wrong token: upstream's strategy, which decides what its messages say.
//!
//! Every place of the grammar at which a token is wanted is a *state* with a number and the set of tokens that may
//! come there; [`EPSILON`] in a set says that the rule may end there, so what follows the rule counts as well.

use std::collections::BTreeSet;

use super::lexer::{Kind, NAMES, Token};
use crate::issues::{Issues, Location};

/// A set of token kinds, a bit each.
pub(super) type Set = u64;

/// The rule may end here.
pub(super) const EPSILON: Set = 1 << 63;
const MAX_ATTEMPTS: u32 = 30;
const MAX_LOOKAHEAD: u32 = 256;
const MAX_SYNTAX_ERRORS: u32 = 100;
const MAX_DEPTH: u32 = 250;

pub(super) const fn of(kinds: &[Kind]) -> Set {
    let mut set = 0;
    let mut i = 0;
    while i < kinds.len() {
        set |= 1 << (kinds[i] as u8);
        i += 1;
    }
    set
}

pub(super) fn has(set: Set, kind: Kind) -> bool {
    set >> (kind as u8) & 1 == 1
}

/// Parsing ends at once: a limit was hit, and reported.
#[derive(Debug)]
pub(super) struct Abort;

/// Why a rule ends early.
pub(super) enum Fail {
    /// Another token than one of these came.
    Mismatch(Set),
    /// No alternative begins with the tokens `from..=to` (indices).
    NoViable(usize, usize),
    Abort,
}

impl From<Abort> for Fail {
    fn from(_: Abort) -> Self {
        Self::Abort
    }
}

/// The kind of a state, where [`Recovery::sync`] is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// Before alternatives.
    Block,
    /// Before another round of a loop.
    LoopBack,
}

/// The tokens and how far they are read.
pub(super) struct Recovery {
    pub(super) tokens: Vec<Token>,
    pub(super) at: usize,
    pub(super) issues: Issues,
    /// What follows each rule under way, outermost first.
    pub(super) follow: Vec<Set>,
    depth: [u32; 9],
    recovering: bool,
    state: u16,
    last_error: Option<usize>,
    last_states: BTreeSet<u16>,
    attempts: u32,
    reported: u32,
}

impl Recovery {
    pub(super) fn new(tokens: Vec<Token>, issues: Issues) -> Self {
        Self {
            tokens,
            at: 0,
            issues,
            follow: Vec::new(),
            depth: [0; 9],
            recovering: false,
            state: 0,
            last_error: None,
            last_states: BTreeSet::new(),
            attempts: 0,
            reported: 0,
        }
    }

    /// The kind of the token `ahead` tokens from here.
    pub(super) fn la(&self, ahead: usize) -> Kind {
        self.token(self.at + ahead).kind
    }

    fn token(&self, index: usize) -> Token {
        self.tokens[index.min(self.tokens.len() - 1)]
    }

    /// The current token.
    pub(super) fn current(&self) -> Token {
        self.token(self.at)
    }

    fn consume(&mut self) -> Token {
        let token = self.current();
        if token.kind != Kind::Eof {
            self.at += 1;
        }
        token
    }

    /// Takes the current token as the right one.
    pub(super) fn accept(&mut self) -> Token {
        self.matched();
        self.consume()
    }

    fn matched(&mut self) {
        self.recovering = false;
        self.last_error = None;
        self.last_states.clear();
    }

    /// Counts a use of a rule within itself.
    pub(super) fn enter(&mut self, rule: usize) -> Result<(), Abort> {
        self.depth[rule] += 1;
        if self.depth[rule] > MAX_DEPTH {
            let message = format!("expression recursion limit exceeded: {MAX_DEPTH}");
            self.issues.report(Location::NONE, message);
            return Err(Abort);
        }
        Ok(())
    }

    /// Ends a use of a rule.
    pub(super) fn leave(&mut self, rule: usize) {
        self.depth[rule] = self.depth[rule].saturating_sub(1);
    }

    /// The tokens that may come at a state with the set `set`.
    fn expected(&self, set: Set) -> Set {
        let mut all = set & !EPSILON;
        if set & EPSILON == 0 {
            return all;
        }
        for follow in self.follow.iter().rev() {
            all |= follow & !EPSILON;
            if follow & EPSILON == 0 {
                return all;
            }
        }
        all | of(&[Kind::Eof])
    }

    fn recovery_set(&self) -> Set {
        self.follow.iter().fold(0, |all, set| all | set) & !EPSILON
    }

    /// Looks whether the current token may come at a state; deletes or reports it if not.
    pub(super) fn sync(&mut self, state: u16, point: Point, set: Set) -> Result<(), Fail> {
        self.state = state;
        if self.recovering || set & EPSILON != 0 || has(set, self.la(0)) {
            return Ok(());
        }
        match point {
            Point::Block if self.delete_token(set)? => Ok(()),
            Point::Block => Err(Fail::Mismatch(self.expected(set))),
            Point::LoopBack => {
                let expecting = self.expected(set);
                self.unwanted(expecting)?;
                let stop = expecting | self.recovery_set();
                while self.la(0) != Kind::Eof && !has(stop, self.la(0)) {
                    self.consume();
                }
                Ok(())
            }
        }
    }

    /// Takes a token of this kind; `next` is the set of the state after it.
    pub(super) fn expect(&mut self, state: u16, kind: Kind, next: Set) -> Result<Option<Token>, Fail> {
        self.state = state;
        if self.la(0) == kind {
            return Ok(Some(self.accept()));
        }
        self.check_attempts()?;
        let set = of(&[kind]);
        if self.delete_token(set)? {
            return Ok(Some(self.consume()));
        }
        if has(self.expected(next), self.la(0)) {
            if !self.recovering {
                self.recovering = true;
                let message = format!("missing {} at {}", show(set), self.quoted(self.at, self.at));
                self.syntax(self.at, &message)?;
            }
            return Ok(None);
        }
        Err(Fail::Mismatch(set))
    }

    fn delete_token(&mut self, set: Set) -> Result<bool, Abort> {
        let expecting = self.expected(set);
        if !has(expecting, self.la(1)) || self.la(0) == Kind::Eof {
            return Ok(false);
        }
        self.unwanted(expecting)?;
        self.consume();
        self.matched();
        Ok(true)
    }

    fn unwanted(&mut self, expecting: Set) -> Result<(), Abort> {
        if self.recovering {
            return Ok(());
        }
        self.recovering = true;
        let shown = self.quoted(self.at, self.at);
        self.syntax(self.at, &format!("extraneous input {shown} expecting {}", show(expecting)))
    }

    /// Reports why a rule failed and skips to what may follow.
    pub(super) fn recover(&mut self, fail: &Fail) -> Result<(), Abort> {
        if matches!(fail, Fail::Abort) {
            return Err(Abort);
        }
        if !self.recovering {
            self.recovering = true;
            self.report(fail)?;
        }
        self.check_attempts()?;
        if self.last_error == Some(self.at) && self.last_states.contains(&self.state) {
            self.consume();
        }
        self.last_error = Some(self.at);
        self.last_states.insert(self.state);
        let (stop, mut taken) = (self.recovery_set(), 0);
        while self.la(0) != Kind::Eof && !has(stop, self.la(0)) {
            if taken >= MAX_LOOKAHEAD {
                let message = format!("error recovery token lookahead limit exceeded: {MAX_LOOKAHEAD}");
                self.issues.report(Location::NONE, message);
                return Err(Abort);
            }
            taken += 1;
            self.consume();
        }
        Ok(())
    }

    fn report(&mut self, fail: &Fail) -> Result<(), Abort> {
        match fail {
            Fail::Mismatch(expected) => {
                let shown = self.quoted(self.at, self.at);
                self.syntax(self.at, &format!("mismatched input {shown} expecting {}", show(*expected)))
            }
            Fail::NoViable(from, to) => {
                let shown = self.quoted(*from, *to);
                let word = shown.get(2..shown.len() - 1).filter(|w| matches!(*w, "true" | "false" | "null"));
                let message = match word {
                    Some(word) => format!("mismatched input '{word}' expecting IDENTIFIER"),
                    None => format!("no viable alternative at input {shown}"),
                };
                self.syntax(*to, &message)
            }
            Fail::Abort => Err(Abort),
        }
    }

    fn check_attempts(&mut self) -> Result<(), Abort> {
        if self.attempts == MAX_ATTEMPTS {
            self.syntax(self.at, &format!("error recovery attempt limit exceeded: {MAX_ATTEMPTS}"))?;
            return Err(Abort);
        }
        self.attempts += 1;
        Ok(())
    }

    fn syntax(&mut self, token: usize, message: &str) -> Result<(), Abort> {
        let at = self.token(token).start;
        let location = match self.issues.source() {
            source if source.chars.is_empty() => Location { line: 1, column: -1 },
            source => source.location(at),
        };
        self.reported += 1;
        if self.reported > MAX_SYNTAX_ERRORS {
            let message = format!("Syntax error: More than {MAX_SYNTAX_ERRORS} syntax errors");
            self.issues.report(location, message);
            return Err(Abort);
        }
        self.issues.report(location, format!("Syntax error: {message}"));
        Ok(())
    }

    /// The source from one token to another, quoted.
    fn quoted(&self, from: usize, to: usize) -> String {
        let (first, mut last) = (self.token(from), self.token(to));
        if first.kind == Kind::Eof {
            return "'<EOF>'".to_owned();
        }
        if last.kind == Kind::Eof {
            last = self.token(to.saturating_sub(1).min(self.tokens.len() - 2));
        }
        let text: String = self.issues.source().chars[first.start..last.end].iter().collect();
        format!("'{}'", text.replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r"))
    }
}

fn show(set: Set) -> String {
    let names: Vec<&str> = (0..NAMES.len()).filter(|i| set >> i & 1 == 1).map(|i| NAMES[i]).collect();
    match names.as_slice() {
        [one] => (*one).to_owned(),
        _ => format!("{{{}}}", names.join(", ")),
    }
}
