// A Go server that takes requests with a token of Culvert's connector alone, checked with the standard library. (With
// github.com/golang-jwt/jwt and github.com/MicahParks/keyfunc it is ten lines; what has to be checked is the same.) The relay
// serves the keys ([issuer] in relay.toml); every tunnel is an issuer of its own, https://ITS-ISSUER/TUNNEL.
//
//	ISSUER=https://id.example.com/main AUDIENCE=reports-api go run go-jwt.go
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

type jwk struct{ Kid, Alg, X, Y, N, E string }

type claims struct {
	Iss, Sub, Aud string
	Nbf, Exp      int64
	Method        string `json:"culvert_method"`
	Path          string `json:"culvert_path"`
	Gateway       string `json:"culvert_gateway"`
}

type verifier struct {
	issuer, audience string
	bound            bool
	gateways         []string
	sync.Mutex
	keys    []jwk
	fetched time.Time
}

// key finds one that was fetched, and fetches them again for one that is not among them, at most every ten seconds.
func (v *verifier) key(kid string) (jwk, error) {
	v.Lock()
	defer v.Unlock()
	for {
		for _, key := range v.keys {
			if key.Kid == kid {
				return key, nil
			}
		}
		if time.Since(v.fetched) < 10*time.Second {
			return jwk{}, errors.New("no such key")
		}
		v.fetched = time.Now()
		answer, err := (&http.Client{Timeout: 5 * time.Second}).Get(v.issuer + "/.well-known/jwks.json")
		if err != nil {
			return jwk{}, err
		}
		var set struct{ Keys []jwk }
		err = json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(&set)
		answer.Body.Close()
		if err != nil {
			return jwk{}, err
		}
		v.keys = set.Keys
	}
}

func (v *verifier) verify(token string, r *http.Request) (*claims, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errors.New("no token")
	}
	var head struct{ Kid string }
	var said claims
	if err := read(parts[0], &head); err != nil {
		return nil, err
	}
	key, err := v.key(head.Kid)
	if err != nil {
		return nil, err
	}
	if !key.signed(parts[0]+"."+parts[1], number(parts[2])) {
		return nil, errors.New("the signature is wrong")
	}
	if err := read(parts[1], &said); err != nil {
		return nil, err
	}
	// A minute for clocks that differ.
	now := time.Now().Unix()
	switch {
	case said.Iss != v.issuer || said.Aud != v.audience:
		return nil, errors.New("the token is for somebody else, or by somebody else")
	case now < said.Nbf-60 || now >= said.Exp+60:
		return nil, errors.New("the token is not valid now")
	// Where the connector's configuration says bind = "request": a token is for one method and path alone.
	case v.bound && (said.Method != r.Method || said.Path != r.RequestURI):
		return nil, errors.New("the token is for another request")
	}
	// Where not every gateway of the relay may call.
	known := len(v.gateways) == 0
	for _, gateway := range v.gateways {
		known = known || gateway == said.Gateway
	}
	if !known {
		return nil, errors.New("the token is for another gateway")
	}
	return &said, nil
}

// signed goes by what the key says it is for, never by what the token says.
func (key jwk) signed(text string, signature []byte) bool {
	x, y := number(key.X), number(key.Y)
	hash := sha256.Sum256([]byte(text))
	switch {
	case key.Alg == "EdDSA" && len(x) == ed25519.PublicKeySize:
		return ed25519.Verify(ed25519.PublicKey(x), []byte(text), signature)
	case key.Alg == "ES256" && len(signature) == 64:
		public := ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).SetBytes(x), Y: new(big.Int).SetBytes(y)}
		if !public.Curve.IsOnCurve(public.X, public.Y) {
			return false
		}
		r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
		return ecdsa.Verify(&public, hash[:], r, s)
	case key.Alg == "RS256" && len(number(key.N)) >= 256 && len(number(key.E)) <= 4:
		public := rsa.PublicKey{N: new(big.Int).SetBytes(number(key.N)), E: int(new(big.Int).SetBytes(number(key.E)).Int64())}
		return rsa.VerifyPKCS1v15(&public, crypto.SHA256, hash[:], signature) == nil
	}
	return false
}

// number is nothing where the text is none.
func number(text string) []byte {
	bytes, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil
	}
	return bytes
}

func read(part string, into interface{}) error { return json.Unmarshal(number(part), into) }

func main() {
	v := &verifier{issuer: os.Getenv("ISSUER"), audience: os.Getenv("AUDIENCE"), bound: os.Getenv("BOUND") != ""}
	if v.issuer == "" || v.audience == "" {
		log.Fatal("ISSUER and AUDIENCE are needed")
	}
	if gateways := os.Getenv("GATEWAYS"); gateways != "" {
		v.gateways = strings.Split(gateways, ",")
	}
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said, err := v.verify(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), r)
		if err != nil {
			log.Print(err)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		// The gateway that called, where the relay knew which.
		log.Printf("%s called by way of %q", said.Sub, said.Gateway)
		io.WriteString(w, "in\n")
	})
	log.Fatal(http.ListenAndServe(net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT")), app))
}
