//! Lists: plain ones, those of schemas (sets and maps by keys), and joined ones that share their parts.

use std::sync::Arc;

use super::{Fault, Fuel, Key, Value, equal, find};

/// Elements up to which joining copies.
const COPIED: u64 = 1024;

/// What `==` and `+` mean for a list: `x-kubernetes-list-type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListKind {
    Plain,
    Set,
    /// Elements are known by these fields.
    Map(Arc<[Arc<str>]>),
}

#[derive(Debug)]
enum Repr {
    Items { items: Vec<Value>, kind: ListKind },
    Joined { left: List, right: List, len: u64 },
}

/// A list of values. Cheap to clone and to join.
#[derive(Clone, Debug)]
pub struct List(Arc<Repr>);

impl List {
    /// A list of these values.
    pub fn new(items: Vec<Value>) -> Self {
        Self::with_kind(items, ListKind::Plain)
    }

    pub(crate) fn with_kind(items: Vec<Value>, kind: ListKind) -> Self {
        Self(Arc::new(Repr::Items { items, kind }))
    }

    /// The number of elements.
    pub fn len(&self) -> u64 {
        match &*self.0 {
            Repr::Items { items, .. } => items.len() as u64,
            Repr::Joined { len, .. } => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn kind(&self) -> &ListKind {
        match &*self.0 {
            Repr::Items { kind, .. } => kind,
            Repr::Joined { .. } => &ListKind::Plain,
        }
    }

    /// The element at `index`.
    pub(crate) fn get(&self, index: u64) -> Option<&Value> {
        let (mut list, mut index) = (self, index);
        loop {
            match &*list.0 {
                Repr::Items { items, .. } => return items.get(usize::try_from(index).ok()?),
                Repr::Joined { left, .. } if index < left.len() => list = left,
                Repr::Joined { left, right, .. } => {
                    index -= left.len();
                    list = right;
                }
            }
        }
    }

    /// The elements in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter { open: vec![self], items: [].iter() }
    }

    /// This list with an element more, in place where nobody else has it.
    pub(crate) fn push(mut self, value: Value) -> Self {
        if let Some(Repr::Items { items, .. }) = Arc::get_mut(&mut self.0) {
            items.push(value);
            return self;
        }
        let mut items: Vec<Value> = self.iter().cloned().collect();
        items.push(value);
        Self::new(items)
    }

    /// Both lists, one after the other; sets and maps by keys are merged.
    ///
    /// # Errors
    /// What comparing elements yields.
    pub(crate) fn join(&self, other: &Self, fuel: &Fuel) -> Result<Self, Fault> {
        if *self.kind() != ListKind::Plain {
            return self.merge(other, fuel);
        }
        if other.is_empty() {
            return Ok(self.clone());
        }
        let len = self.len().saturating_add(other.len());
        if len > COPIED {
            return Ok(Self(Arc::new(Repr::Joined { left: self.clone(), right: other.clone(), len })));
        }
        Ok(Self::new(self.iter().chain(other.iter()).cloned().collect()))
    }

    fn merge(&self, other: &Self, fuel: &Fuel) -> Result<Self, Fault> {
        let mut items: Vec<Value> = self.iter().cloned().collect();
        for value in other.iter() {
            fuel.take(items.len() as u64)?;
            match self.position(&items, value, fuel)? {
                Some(at) => items[at] = value.clone(),
                None => items.push(value.clone()),
            }
        }
        Ok(Self::with_kind(items, self.kind().clone()))
    }

    fn position(&self, items: &[Value], value: &Value, fuel: &Fuel) -> Result<Option<usize>, Fault> {
        for (i, item) in items.iter().enumerate() {
            let same = match self.kind() {
                ListKind::Map(keys) => same_keys(keys, item, value, fuel)?,
                _ => equal(item, value, fuel)?,
            };
            if same {
                return Ok(Some(i));
            }
        }
        Ok(None)
    }

    /// Whether both hold the same elements, in the same order unless the kind says otherwise.
    ///
    /// # Errors
    /// What comparing elements yields.
    pub(crate) fn equals(&self, other: &Self, fuel: &Fuel) -> Result<bool, Fault> {
        if self.len() != other.len() {
            return Ok(false);
        }
        if *self.kind() != ListKind::Plain {
            let items: Vec<Value> = self.iter().cloned().collect();
            for value in other.iter() {
                fuel.take(items.len() as u64)?;
                match self.position(&items, value, fuel)? {
                    Some(at) if equal(&items[at], value, fuel)? => {}
                    _ => return Ok(false),
                }
            }
            return Ok(true);
        }
        for (ours, theirs) in self.iter().zip(other.iter()) {
            fuel.take(1)?;
            if !equal(ours, theirs, fuel)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn same_keys(keys: &[Arc<str>], first: &Value, second: &Value, fuel: &Fuel) -> Result<bool, Fault> {
    let (Value::Map(first), Value::Map(second)) = (first, second) else { return Ok(false) };
    for key in keys {
        let key = Key::String(key.clone()).value();
        match (find(first, &key), find(second, &key)) {
            (None, None) => {}
            (Some(a), Some(b)) if equal(a, b, fuel)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Walks a list.
#[derive(Debug)]
pub struct Iter<'a> {
    open: Vec<&'a List>,
    items: std::slice::Iter<'a, Value>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Value;

    fn next(&mut self) -> Option<&'a Value> {
        loop {
            if let Some(item) = self.items.next() {
                return Some(item);
            }
            match &*self.open.pop()?.0 {
                Repr::Items { items, .. } => self.items = items.iter(),
                Repr::Joined { left, right, .. } => {
                    self.open.push(right);
                    self.open.push(left);
                }
            }
        }
    }
}

impl<'a> IntoIterator for &'a List {
    type Item = &'a Value;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}
