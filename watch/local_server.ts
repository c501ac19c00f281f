/** Serves a page to the machine that it runs on, and to no other page. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { UserError } from '../lib/errors.ts';

/** Of every answer. */
export const LOCAL_HEADERS = {
  'Content-Security-Policy': "default-src 'none'; frame-ancestors 'none'",
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
  'X-Frame-Options': 'DENY',
  'Cache-Control': 'no-store',
};

export const refuse = (response: ServerResponse, status: number, why: string): void =>
  void response.writeHead(status, { ...LOCAL_HEADERS, 'Content-Type': 'text/plain; charset=utf-8' }).end(why);

/** Whether a request is from the page itself, or from whoever typed its address: another page's has another Origin or Host. */
function isOwn({ headers: { host, origin } }: IncomingMessage, port: number): boolean {
  const own = [`127.0.0.1:${port}`, `localhost:${port}`];
  return own.includes(host ?? '') && (origin === undefined || own.includes(origin.replace(/^http:\/\//, '')));
}

/**
 * Listens to this machine.
 * @param port - 0: any that is free
 * @param answer - is given requests that read, and come from the page itself
 * @returns its address, and what ends it
 * @throws {UserError} if the port is taken
 */
export async function listenLocally(
  port: number,
  answer: (request: IncomingMessage, response: ServerResponse) => void,
): Promise<{ url: string; close: () => Promise<void> }> {
  const portOf = (server: Server) => (server.address() as AddressInfo).port;
  const server: Server = createServer((request, response) => {
    if (!isOwn(request, portOf(server))) return refuse(response, 403, 'this page is for the machine that it runs on');
    if (request.method !== 'GET') return refuse(response, 405, 'this page is only read');
    answer(request, response);
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const advice = `port ${port} cannot be used (${error.code}): name another with --port, or --port 0 for any`;
      reject(new UserError(advice));
    });
    server.listen(port, '127.0.0.1', resolve);
  });
  return {
    url: `http://127.0.0.1:${portOf(server)}/`,
    close: () => new Promise((resolve) => server.close(() => resolve())),
  };
}
