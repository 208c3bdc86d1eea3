#!/bin/sh
# Makes the certificates of these tests anew; they are worth nothing and last a hundred years.
# The authority breaks RFC 5280 (no key usage, no key identifiers), as private ones often do.
set -eu
cd "$(dirname "$0")"
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
plain="subjectKeyIdentifier = none
authorityKeyIdentifier = none"
sign() { # NAME SUBJECT EXTENSIONS
    key "$1-key.pem"
    openssl req -new -key "$1-key.pem" -subj "$2" -out request
    printf '%s\n%s\n' "$plain" "$3" > extensions
    openssl x509 -req -in request -CA ca.pem -CAkey ca-key -set_serial "$(date +%s%N)" \
        -days 36500 -extfile extensions -out "$1.pem"
}
for name in ca other-ca; do
    key "$name-key"
    openssl req -x509 -new -key "$name-key" -subj "/CN=krelay $name" -days 36500 -config /dev/stdin -out $name.pem <<END
[req]
distinguished_name = dn
x509_extensions = ext
[dn]
[ext]
basicConstraints = CA:TRUE
$plain
END
done
sign server "/CN=kube" "subjectAltName = DNS:localhost, DNS:kube.test, IP:127.0.0.1"
sign client "/O=team/CN=dev" "extendedKeyUsage = clientAuth"
openssl pkey -in client-key.pem -aes256 -passout pass:secret -out client-locked-key.pem
dated() { # NAME START END: a certificate of the server's key
    openssl req -new -key server-key.pem -subj "/CN=kube" -out request
    mkdir -p new && : > index
    openssl rand -hex 8 > serial
    openssl ca -batch -notext -config /dev/stdin -cert ca.pem -keyfile ca-key -in request \
        -startdate "$2" -enddate "$3" -out "$1.pem" <<END
[ca]
default_ca = default
[default]
database = index
serial = serial
new_certs_dir = new
default_md = sha256
policy = any
unique_subject = no
x509_extensions = ext
[any]
commonName = supplied
[ext]
subjectAltName = DNS:localhost, IP:127.0.0.1
$plain
END
}
dated expired 20200101000000Z 20200102000000Z
dated future 21200101000000Z 21200102000000Z
rm -rf request extensions ca-key other-ca-key index* serial* new
