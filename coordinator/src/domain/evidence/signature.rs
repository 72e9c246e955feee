//! ECDSA P-256 signatures (SEC 1, ASN.1 DER) in their one canonical form.
//!
//! Of (r, s) and (r, n - s) either verifies, and anybody can turn one into the
//! other. The file's own signature is written with the smaller s and read in no
//! other form, so that nobody can change the file and keep it good.

/// The order n of the P-256 group (FIPS 186-4, D.1.2.3).
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
    0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;

/// The form with the smaller s; `None` when this is no P-256 signature.
pub(super) fn canonical(der: &[u8]) -> Option<Vec<u8>> {
    let (body, rest) = element(SEQUENCE, der)?;
    let (r, body) = element(INTEGER, body)?;
    let (s, body) = element(INTEGER, body)?;
    if !rest.is_empty() || !body.is_empty() {
        return None;
    }
    let (r, s) = (number(r)?, number(s)?);
    let other = minus(&ORDER, &s)?;
    let mut body = integer(&r);
    body.extend(integer(&s.min(other)));
    // Two integers of 33 bytes at most: the short form of a length is enough.
    Some([vec![SEQUENCE, u8::try_from(body.len()).ok()?], body].concat())
}

/// Content of the element of this tag in front, and what follows it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    match der {
        [first, length @ 0..0x80, rest @ ..] if *first == tag => rest.split_at_checked(usize::from(*length)),
        _ => None,
    }
}

/// A non-negative number of at most 32 bytes, big-endian.
fn number(content: &[u8]) -> Option<[u8; 32]> {
    let zeros = content.iter().take_while(|byte| **byte == 0).count();
    let digits = &content[zeros..];
    let mut number = [0; 32];
    number.get_mut(32_usize.checked_sub(digits.len())?..)?.copy_from_slice(digits);
    Some(number)
}

fn integer(number: &[u8; 32]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count().min(31);
    let mut content = number[zeros..].to_vec();
    if content[0] & 0x80 != 0 {
        content.insert(0, 0);
    }
    // At most 33 bytes.
    [vec![INTEGER, content.len() as u8], content].concat()
}

/// `a - b`; `None` below zero.
fn minus(a: &[u8; 32], b: &[u8; 32]) -> Option<[u8; 32]> {
    let mut difference = [0; 32];
    let mut borrow = false;
    for at in (0..32).rev() {
        let (digit, under) = a[at].overflowing_sub(b[at]);
        let (digit, under_again) = digit.overflowing_sub(u8::from(borrow));
        difference[at] = digit;
        borrow = under || under_again;
    }
    (!borrow).then_some(difference)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
    };
    use proptest::prelude::*;

    /// The same signature with the other s.
    pub(in crate::domain::evidence) fn mirrored(der: &[u8]) -> Vec<u8> {
        let (body, _) = element(SEQUENCE, der).unwrap();
        let (r, body) = element(INTEGER, body).unwrap();
        let (s, _) = element(INTEGER, body).unwrap();
        let other = minus(&ORDER, &number(s).unwrap()).unwrap();
        let body = [integer(&number(r).unwrap()), integer(&other)].concat();
        [vec![SEQUENCE, body.len() as u8], body].concat()
    }

    #[test]
    fn both_forms_have_one_canonical_form_that_verifies() {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref().to_vec());
        for message in 0u8..64 {
            let signature = key.sign(&SystemRandom::new(), &[message]).unwrap().as_ref().to_vec();
            let other = mirrored(&signature);
            assert!(public.verify(&[message], &other).is_ok(), "why this module exists");
            let canonical_form = canonical(&signature).unwrap();
            assert_eq!(canonical(&other).as_ref(), Some(&canonical_form));
            assert_eq!(canonical(&canonical_form).as_ref(), Some(&canonical_form));
            assert!(public.verify(&[message], &canonical_form).is_ok());
            assert!(canonical_form == signature || canonical_form == other);
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = canonical(&bytes);
        }
    }
}
