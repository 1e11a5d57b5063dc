//! How a section of the configuration is declared: each key once, with its type, its default and its
//! documentation.

/// A section, as the example file and the environment know it.
#[derive(Clone, Debug)]
pub(super) struct Section {
    /// Its name in the file.
    pub(super) name: &'static str,
    /// What it is about: the lines of its documentation.
    pub(super) about: &'static [&'static str],
    pub(super) keys: &'static [Key],
    /// Its defaults, as the file would say them.
    pub(super) defaults: toml::Table,
}

/// A key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// What it says: the lines of its documentation.
    pub(super) doc: &'static [&'static str],
}

/// A struct that declares a section.
pub(super) trait Declared {
    const ABOUT: &'static [&'static str];
    const KEYS: &'static [Key];
}

/// Declares a section: a struct whose fields have defaults, and documentation that is kept.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr, )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $type, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $crate::config::section::Declared for $name {
            const ABOUT: &'static [&'static str] = &[$($about),+];
            const KEYS: &'static [$crate::config::section::Key] = &[
                $($crate::config::section::Key {
                    name: stringify!($field),
                    doc: &[$($doc),+],
                }),+
            ];
        }
    };
}

/// Declares the whole: the sections, in their order.
macro_rules! sections {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty, )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $type, )+
        }

        impl $name {
            /// The sections, in the order of the example file.
            fn sections() -> Vec<$crate::config::section::Section> {
                use $crate::config::section::{Declared as _, Section};
                vec![$(Section {
                    name: stringify!($field),
                    about: <$type>::ABOUT,
                    keys: <$type>::KEYS,
                    defaults: toml::Table::try_from(<$type>::default()).unwrap_or_default(),
                }),+]
            }
        }
    };
}

pub(super) use {section, sections};
