//! Two ordered maps side by side.

use std::collections::BTreeMap;

/// What the second map has for each key of the first: one walk through both, where a look-up for each key
/// would compare it with a dozen others.
pub(super) fn merge_join<'a, 'b, K: Ord, A, B>(
    all: &'a BTreeMap<K, A>,
    known: &'b BTreeMap<K, B>,
) -> impl Iterator<Item = (&'a K, &'a A, Option<&'b B>)> {
    let mut known = known.iter().peekable();
    all.iter().map(move |(key, value)| {
        while known.next_if(|(other, _)| *other < key).is_some() {}
        let found = known.next_if(|(other, _)| *other == key);
        (key, value, found.map(|(_, found)| found))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_of_the_first_are_there_with_what_the_second_has(
            all in prop::collection::btree_map(0u8..30, any::<u8>(), 0..20),
            known in prop::collection::btree_map(0u8..30, any::<u8>(), 0..20),
        ) {
            let expected = all.iter().map(|(key, value)| (key, value, known.get(key)));
            prop_assert!(merge_join(&all, &known).eq(expected));
        }
    }
}
