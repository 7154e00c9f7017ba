#!/bin/sh
# Makes an authority of your own, a certificate for an origin, and one for a connector, with openssl:
#   make-certificates.sh DIRECTORY ORIGIN-NAME
# Keep ca.key away from both hosts. To renew a certificate run the last lines again and put the files in place by `mv`:
# nginx wants a reload then, the connector sees it by itself.
set -eu
cd "$1"
umask 077
new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc'
[ -e ca.key ] || openssl req -x509 $new -keyout ca.key -out ca.pem -days 3650 -subj '/CN=our origins' \
    -addext keyUsage=critical,keyCertSign,cRLSign

# sign NAME USAGE NAMES: NAME.key (PKCS#8) and NAME.pem.
sign() {
    openssl req $new -keyout "$1.key" -out "$1.csr" -subj "/CN=$1" -addext "subjectAltName=$3" \
        -addext "extendedKeyUsage=$2" -addext basicConstraints=critical,CA:FALSE
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy -days 90 -out "$1.pem"
    rm "$1.csr"
}
sign origin serverAuth "DNS:$2"
sign connector clientAuth "DNS:connector"
