import pytest

from penstock.dataset.links import Link, intent_key, is_absolute_location, join_location, local_path, parse_link
from penstock.errors import ConfigError, LinkError, ManifestError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x@refresh", Link("x", "refresh")),
        ("x@sha256:h", Link("x", "pinned", "h")),
        ("x", Link("x")),
        ("a@b/c", Link("a@b/c")),
        ("user@host/data@refresh", Link("user@host/data", "refresh")),
        ("x@latest", Link("x@latest")),
        ("x@Refresh", Link("x@Refresh")),
        ("x@refresh@refresh", Link("x@refresh", "refresh")),
        ("x@refresh/y", Link("x@refresh/y")),
        ("s3://b/p@sha256:../..", Link("s3://b/p", "pinned", "../..")),
    ],
)
def test_e2_01_links_parse_by_their_last_suffix_and_print_as_they_were(text, expected):
    link = parse_link(text)
    assert link == expected
    assert str(link) == text
    assert parse_link(f"  {text}\n") == expected


@pytest.mark.parametrize("text", ["", " \t", "@refresh", "x@sha256:", "@sha256:h", " @sha256:"])
def test_e2_02_a_link_without_base_or_hash_is_an_error(text):
    with pytest.raises(LinkError):
        parse_link(text)


def test_e2_02_the_errors_say_what_is_wrong_and_are_value_errors():
    with pytest.raises(ValueError, match="empty dataset link"):
        parse_link("")
    with pytest.raises(ConfigError, match=r"@sha256:<hash>"):
        parse_link("x@sha256:")


def test_e2_03_slashes_at_the_end_and_white_space_make_no_other_intent():
    key = intent_key("s3://b/p")
    assert intent_key("s3://b/p/") == intent_key(" s3://b/p// ") == key
    assert intent_key("s3://b/q") != key
    # printf s3://b/p | sha256sum
    assert key == "sha256_7fb9692596506b4ddd58c0dec1e7fa7447cd1bbbbe19c1da640fd0136be01b4f"


def test_only_paths_and_file_urls_are_local(tmp_path):
    assert local_path(str(tmp_path)) == tmp_path
    assert local_path(f"file://{tmp_path}") == tmp_path
    assert local_path("s3://b/p") is None
    assert local_path("ftp://b/p") is None


def test_a_relative_location_is_joined_and_an_absolute_one_stands():
    assert join_location("/data", "shards/a.tar") == "/data/shards/a.tar"
    assert join_location("s3://b/p/", "a") == "s3://b/p/a"
    assert join_location("/data", "/other/a") == "/other/a"
    assert join_location("/data", "s3://b/a") == "s3://b/a"
    assert join_location("/data", "a..b/..c") == "/data/a..b/..c"
    assert not is_absolute_location("a:/b")
    for climbing in ("..", "../a", "a/../../b"):
        with pytest.raises(ManifestError, match=r"\.\."):
            join_location("/data", climbing)


@pytest.mark.parametrize("given", [["a", "b"], None, b"data", 3])
def test_what_is_no_text_is_refused_and_several_are_shown_the_way(given):
    with pytest.raises(LinkError, match=r"not (list|NoneType|bytes|int); several datasets .*penstock.mix"):
        parse_link(given)


@pytest.mark.parametrize("text", ["s3://", "gs:///", "s3://@refresh", " S3:// "])
def test_a_url_without_a_bucket_is_no_folder(text):
    with pytest.raises(LinkError, match="names no bucket"):
        parse_link(text)
