/**
 * The page's service worker: keeps all of its files, so that it opens without a network; and says of them that nothing of
 * another place is in the page, which is what a browser asks before memory may be shared among threads. A host of static
 * files, which cannot say so itself, thus gets threads from the second visit on.
 */

/** What `build.ts` puts in: the names of all files, and a hash of what is in them. */
declare const NAMES: string[];
declare const VERSION: string;

/** A service worker's own, which the types of pages do not have. */
type ExtendableEvent = Event & { waitUntil(done: Promise<unknown>): void };
type FetchEvent = Event & { request: Request; respondWith(response: Promise<Response>): void };
type Scope = {
  addEventListener(type: 'install' | 'activate', hear: (event: ExtendableEvent) => void): void;
  addEventListener(type: 'fetch', hear: (event: FetchEvent) => void): void;
  skipWaiting(): Promise<void>;
  clients: { claim(): Promise<void> };
};
const scope = self as unknown as Scope;

const ISOLATED = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
};

scope.addEventListener('install', (event) => {
  const keep = async () => {
    const cache = await caches.open(VERSION);
    await cache.addAll(NAMES.map((name) => new Request(name, { cache: 'reload' })));
    await scope.skipWaiting();
  };
  event.waitUntil(keep());
});

scope.addEventListener('activate', (event) => {
  const forget = async () => {
    for (const name of await caches.keys()) if (name !== VERSION && name.startsWith('grpo-')) await caches.delete(name);
    await scope.clients.claim();
  };
  event.waitUntil(forget());
});

/** From the network where there is one, so that nobody is shown an old page with a part of a new one. */
async function answer(request: Request): Promise<Response> {
  const kept = async () => (await caches.open(VERSION)).match(request, { ignoreSearch: true });
  const found = await fetch(request).catch(async (error) => (await kept()) ?? Promise.reject(error));
  if (found.status === 0) return found; // another place's, of which nothing can be said
  const headers = new Headers(found.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}

scope.addEventListener('fetch', (event) => {
  if (event.request.method === 'GET') event.respondWith(answer(event.request));
});
