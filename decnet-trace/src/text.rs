//! Texts that come again and again (a client's `User-Agent`, a route, an address): each is kept once,
//! and who needs it shares it. Nothing is allocated for one that is known, or short.

use std::{borrow::Cow, hash::Hasher as _, net::IpAddr};

use rustc_hash::FxHasher;
use smol_str::SmolStr;

/// How many texts are kept.
const TEXTS: usize = 512;

/// How many addresses are kept.
const ADDRESSES: usize = 256;

/// How many texts are kept with what is shown of them.
const SHOWN: usize = 128;

/// The longest text that a [`SmolStr`] holds in itself, in bytes.
const SHORT: usize = 23;

/// Texts by their hash, one for each place: one that comes takes the place of another that was there.
#[derive(Debug)]
pub struct Texts(Box<[SmolStr]>);

impl Default for Texts {
    fn default() -> Self {
        Self(vec![SmolStr::default(); TEXTS].into())
    }
}

impl Texts {
    /// The text, shared with whoever got it before.
    pub fn get(&mut self, text: &str) -> SmolStr {
        if text.len() <= SHORT {
            return SmolStr::new(text);
        }
        let mut hasher = FxHasher::default();
        hasher.write(text.as_bytes());
        let kept = &mut self.0[place(&hasher, TEXTS)];
        if *kept != *text {
            *kept = SmolStr::new(text);
        }
        kept.clone()
    }
}

/// Addresses as texts, likewise.
#[derive(Debug)]
pub struct Addresses(Box<[Option<(IpAddr, SmolStr)>]>);

impl Default for Addresses {
    fn default() -> Self {
        Self(vec![None; ADDRESSES].into())
    }
}

impl Addresses {
    /// The text that `make` makes of the address, or has made of it before.
    pub fn get(&mut self, address: IpAddr, make: impl FnOnce(IpAddr) -> SmolStr) -> SmolStr {
        let mut hasher = FxHasher::default();
        match address {
            IpAddr::V4(address) => hasher.write_u32(address.to_bits()),
            IpAddr::V6(address) => hasher.write_u128(address.to_bits()),
        }
        let kept = &mut self.0[place(&hasher, ADDRESSES)];
        match kept {
            Some((known, text)) if *known == address => text.clone(),
            _ => kept.insert((address, make(address))).1.clone(),
        }
    }

    /// Forgets all: texts are made otherwise from now on.
    pub fn clear(&mut self) {
        self.0.fill(None);
    }
}

/// What is shown of texts, likewise.
#[derive(Debug)]
pub struct Shown(Box<[(SmolStr, SmolStr)]>);

impl Default for Shown {
    fn default() -> Self {
        Self(vec![<(SmolStr, SmolStr)>::default(); SHOWN].into())
    }
}

impl Shown {
    /// What `make` makes of the text, or has made of it before.
    pub fn get(&mut self, text: &SmolStr, make: impl FnOnce(&SmolStr) -> SmolStr) -> SmolStr {
        if text.is_empty() {
            return make(text);
        }
        let mut hasher = FxHasher::default();
        hasher.write(text.as_bytes());
        let kept = &mut self.0[place(&hasher, SHOWN)];
        if kept.0 != *text {
            *kept = (text.clone(), make(text));
        }
        kept.1.clone()
    }

    /// Forgets all: texts are shown otherwise from now on.
    pub fn clear(&mut self) {
        self.0.fill(Default::default());
    }
}

/// A text that may be one of the program's own, without a copy of those.
pub fn of(text: Cow<'static, str>) -> SmolStr {
    match text {
        Cow::Borrowed(text) => SmolStr::new_static(text),
        Cow::Owned(text) => text.into(),
    }
}

fn place(hasher: &FxHasher, places: usize) -> usize {
    hasher.finish() as usize % places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The length up to which nothing is looked up is the one up to which nothing is allocated.
    #[test]
    fn short_texts_allocate_nothing() {
        assert!(!SmolStr::new("x".repeat(SHORT)).is_heap_allocated());
        assert!(SmolStr::new("x".repeat(SHORT + 1)).is_heap_allocated());
    }

    /// A long text is shared with who had it before, and is still itself after another took its place.
    #[test]
    fn long_texts_are_shared() {
        let mut texts = Texts::default();
        let text = "Mozilla/5.0 (X11; Linux x86_64)";
        let first = texts.get(text);
        let second = texts.get(text);
        assert_eq!(first.as_ptr(), second.as_ptr());
        for n in 0..4 * TEXTS {
            let other = format!("another text that is long enough {n}");
            assert_eq!(texts.get(&other), other);
        }
        assert_eq!(first, text);
        assert_eq!(texts.get(text), text);
    }

    /// An address is made a text of once, until all are forgotten.
    #[test]
    fn addresses_are_made_once() {
        let mut addresses = Addresses::default();
        let address = IpAddr::from([192, 0, 2, 1]);
        let mut made = 0;
        for _ in 0..3 {
            let text = addresses.get(address, |address| {
                made += 1;
                address.to_string().into()
            });
            assert_eq!(text, "192.0.2.1");
        }
        addresses.clear();
        assert_eq!(addresses.get(address, |_| "other".into()), "other");
        assert_eq!(made, 1);
    }

    /// What is shown of a text is made once, until all is forgotten; texts in the same place do not share it.
    #[test]
    fn shown_once() {
        let mut shown = Shown::default();
        let mut made = 0;
        let mut get = |shown: &mut Shown, text: &str| {
            shown.get(&text.into(), |text| {
                made += 1;
                text.to_uppercase().into()
            })
        };
        for _ in 0..3 {
            assert_eq!(get(&mut shown, "curl"), "CURL");
        }
        shown.clear();
        assert_eq!(get(&mut shown, "curl"), "CURL");
        for n in 0..4 * SHOWN {
            assert_eq!(get(&mut shown, &format!("c{n}")), format!("C{n}"));
        }
        assert_eq!(get(&mut shown, ""), "");
        assert_eq!(made, 2 + 4 * SHOWN + 1);
    }

    proptest! {
        /// Whatever was asked for before, the text is the one that was asked for.
        #[test]
        fn never_another(asked in prop::collection::vec(("[a-c]{20,30}", any::<u32>()), 1..200)) {
            let (mut texts, mut addresses) = (Texts::default(), Addresses::default());
            for (text, bits) in asked {
                prop_assert_eq!(texts.get(&text), text);
                let address = IpAddr::from(bits.to_be_bytes());
                let shown = addresses.get(address, |address| address.to_string().into());
                prop_assert_eq!(shown, address.to_string());
            }
        }
    }
}
