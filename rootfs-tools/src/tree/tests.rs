use super::*;

fn tree() -> Tree {
    Tree::new(Metadata::root_owned(0o755))
}

fn file() -> Node {
    Node::Regular(Content::Bytes(Vec::new()))
}

#[test]
fn names_that_a_file_system_cannot_hold_are_refused() {
    let mut tree = tree();
    let root = tree.root();
    let long = [b'a'; NAME_MAX + 1];
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &long] {
        let refused = tree.add(root, name, Metadata::default(), file());
        assert_eq!(refused, Err(Error::Name(lossy(name))));
    }
    for name in [&b"..."[..], b"\xff\xfe", &long[1..]] {
        tree.add(root, name, Metadata::default(), file()).unwrap();
    }
    assert_eq!(tree.get(root).unwrap().entries().count(), 3);
}

#[test]
fn a_taken_name_and_a_parent_that_is_a_file_are_refused() {
    let mut tree = tree();
    let root = tree.root();
    let id = tree.add(root, b"a", Metadata::default(), file()).unwrap();
    assert_eq!(
        tree.add(root, b"a", Metadata::default(), Node::Directory),
        Err(Error::Exists("a".into()))
    );
    assert_eq!(
        tree.add(id, b"b", Metadata::default(), file()),
        Err(Error::NotADirectory("b".into()))
    );
}

#[test]
fn hard_links_share_an_inode_and_never_name_a_directory() {
    let mut tree = tree();
    let root = tree.root();
    let id = tree.add(root, b"a", Metadata::default(), file()).unwrap();
    tree.link(root, b"b", id).unwrap();
    assert_eq!(tree.lookup(root, b"b"), Some(id));
    assert_eq!(
        tree.link(root, b"c", root),
        Err(Error::LinkToDirectory("c".into()))
    );
    assert_eq!(tree.remove(root, b"a"), Some(id));
    assert_eq!(tree.lookup(root, b"a"), None);
    assert_eq!(tree.lookup(root, b"b"), Some(id));
}

#[test]
fn symbolic_links_need_a_target_that_the_kernel_follows() {
    let mut tree = tree();
    let root = tree.root();
    for target in [&b""[..], b"a\0b", &[b'a'; TARGET_MAX + 1]] {
        let node = Node::Symlink(target.to_vec());
        let refused = tree.add(root, b"l", Metadata::default(), node);
        let length = target.len();
        let name = "l".into();
        assert_eq!(refused, Err(Error::Target { name, length }));
    }
    let node = Node::Symlink(vec![b'a'; TARGET_MAX]);
    tree.add(root, b"l", Metadata::default(), node).unwrap();
}
