//! A table of kernel entries: what is wanted, counted by users, what the kernel holds, and the difference.
//!
//! Both halves have the kernel's own keys. They are two values because they change for different reasons: [`Wanted`] follows
//! from the facts, [`Held`] mirrors the kernel and is replaced as a whole when the kernel is read in full.

use super::plan::{Context, Phase, Steps};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One kind of kernel entry. A value of the type is one wanted entry.
pub trait EntryKind: Copy + fmt::Display {
    /// The key by which the kernel finds an entry. There is at most one wanted entry for each key.
    type Key: Copy + Ord;
    /// The wanted value of a key.
    type Value: Copy + PartialEq;
    /// The kernel's value of a key, which may be several entries.
    type Held: Clone + PartialEq;
    /// A change that the kernel reports; [`std::convert::Infallible`] if it reports none of this kind one by one.
    type Report: Copy;

    /// The name of one entry, for people.
    const NAME: &'static str;
    /// The name of several.
    const NAMES: &'static str;
    /// The verb for making an entry or replacing the one with its key.
    const SET_VERB: &'static str;
    /// When entries are made.
    const SET: Phase;
    /// When entries are removed.
    const DELETE: Phase;

    /// Splits the entry into its key and what is wanted there.
    fn into_parts(self) -> (Self::Key, Self::Value);

    /// Adds the steps that turn what the kernel holds under `key` into what is wanted there.
    fn compare(
        key: Self::Key,
        want: Option<Self::Value>,
        have: Option<&Self::Held>,
        context: &Context,
        steps: &mut Steps,
    );

    /// Records that the entry was made or took the place of the one with its key.
    fn was_set(self, held: &mut Held<Self>);

    /// Records that the entry was made where none was.
    fn was_added(self, held: &mut Held<Self>) {
        self.was_set(held);
    }

    /// Records that the entry was removed.
    fn was_deleted(self, held: &mut Held<Self>);

    /// Records a change that the kernel reports. The change may be known already: one of our own, or one that an earlier
    /// reading in full has seen.
    fn notice(report: Self::Report, held: &mut Held<Self>) -> Noticed<Self::Key>;

    /// Records that our device has gone with all that was on it.
    fn device_was_deleted(held: &mut Held<Self>) {
        held.clear();
    }

    /// Records that our device has another MAC.
    fn device_mac_was_changed(_held: &mut Held<Self>) {}

    /// Tells whether the entry can only exist on our device.
    fn is_on_device(&self) -> bool {
        true
    }

    /// Names the entry as far as the kernel needs to know it in order to delete it.
    fn identity(&self) -> String {
        self.to_string()
    }
}

/// The meaning of a reported change for the mirror of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noticed<K> {
    /// The change was known.
    Nothing,
    /// The value of this key has changed.
    Key(K),
    /// The report does not tell what is held now: the kernel must be read in full.
    Doubt,
}

impl<K> Noticed<K> {
    /// A change under `key` if `changed`.
    pub fn key_if(changed: bool, key: K) -> Self {
        if changed { Noticed::Key(key) } else { Noticed::Nothing }
    }

    /// The same about another type of key.
    pub fn map<T>(self, convert: impl FnOnce(K) -> T) -> Noticed<T> {
        match self {
            Noticed::Nothing => Noticed::Nothing,
            Noticed::Key(key) => Noticed::Key(convert(key)),
            Noticed::Doubt => Noticed::Doubt,
        }
    }
}

/// Several values, but hardly ever more than one: the first lies in the list itself.
pub type Few<T> = SmallVec<[T; 1]>;

/// The kernel's entries of one kind, by key.
pub type Held<E> = BTreeMap<<E as EntryKind>::Key, <E as EntryKind>::Held>;

/// The wanted entries of one kind, by key. An entry stays wanted until each user has withdrawn it: a host with two
/// subnets has one tunnel endpoint, and so one FDB entry, for both.
pub struct Wanted<E: EntryKind>(BTreeMap<E::Key, Demand<E::Value>>);

/// A wanted value.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Demand<V> {
    value: V,
    users: u32,
}

impl<E: EntryKind> Wanted<E> {
    /// Adds a user of an entry, and gives the entry's key. The last demand decides the value.
    pub fn demand(&mut self, entry: E) -> E::Key {
        let (key, value) = entry.into_parts();
        let demand = self.0.entry(key).or_insert(Demand { value, users: 0 });
        *demand = Demand { value, users: demand.users + 1 };
        key
    }

    /// Removes a user of an entry, and the entry with its last user. Gives the entry's key.
    pub fn withdraw(&mut self, entry: E) -> E::Key {
        let (key, _) = entry.into_parts();
        if let Some(demand) = self.0.get_mut(&key) {
            demand.users -= 1;
            if demand.users == 0 {
                self.0.remove(&key);
            }
        }
        key
    }

    /// Gives what is wanted under a key.
    pub fn get(&self, key: &E::Key) -> Option<E::Value> {
        self.0.get(key).map(|demand| demand.value)
    }

    /// Tells whether something is wanted under a key.
    pub fn contains_key(&self, key: &E::Key) -> bool {
        self.0.contains_key(key)
    }

    /// Iterates over all keys and what is wanted there, in the keys' order.
    pub fn iter(&self) -> impl Iterator<Item = (E::Key, E::Value)> {
        self.0.iter().map(|(key, demand)| (*key, demand.value))
    }

    /// Iterates over all keys, in their order.
    pub fn keys(&self) -> impl Iterator<Item = E::Key> {
        self.0.keys().copied()
    }

    /// The number of wanted entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes as little memory as possible.
    pub fn compact(&mut self) {
        compact(&mut self.0);
    }

    /// Compares one key.
    pub fn diff_at(&self, key: E::Key, held: &Held<E>, context: &Context, steps: &mut Steps) {
        steps.compared += 1;
        E::compare(key, self.get(&key), held.get(&key), context, steps);
    }

    /// Compares the keys of both sides.
    pub fn diff_all(&self, held: &Held<E>, context: &Context, steps: &mut Steps) {
        self.keys().for_each(|key| self.diff_at(key, held, context, steps));
        let unwanted = held.keys().filter(|key| !self.contains_key(key));
        unwanted.for_each(|key| self.diff_at(*key, held, context, steps));
    }
}

/// Rebuilds a map into full nodes: after insertions one by one, half of each node is empty.
pub fn compact<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}

// Derives would ask the kind itself for what only its key and value need.
impl<E: EntryKind> Default for Wanted<E> {
    fn default() -> Self {
        Wanted(BTreeMap::new())
    }
}

impl<E: EntryKind> Clone for Wanted<E> {
    fn clone(&self) -> Self {
        Wanted(self.0.clone())
    }
}

impl<E: EntryKind> PartialEq for Wanted<E> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<E: EntryKind<Key: fmt::Debug, Value: fmt::Debug>> fmt::Debug for Wanted<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Keys under which the kernel may not hold what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dirty<K: Ord> {
    /// Only these.
    Keys(BTreeSet<K>),
    /// Any.
    All,
}

impl<K: Ord> Default for Dirty<K> {
    fn default() -> Self {
        Dirty::Keys(BTreeSet::new())
    }
}

impl<K: Ord> Dirty<K> {
    /// Adds other keys.
    pub fn merge(&mut self, other: Dirty<K>) {
        match (&mut *self, other) {
            (Dirty::Keys(keys), Dirty::Keys(more)) => keys.extend(more),
            _ => *self = Dirty::All,
        }
    }

    /// Tells whether this key is among them.
    pub fn covers(&self, key: &K) -> bool {
        match self {
            Dirty::Keys(keys) => keys.contains(key),
            Dirty::All => true,
        }
    }

    /// Tells whether there are none.
    pub fn is_clean(&self) -> bool {
        matches!(self, Dirty::Keys(keys) if keys.is_empty())
    }
}
