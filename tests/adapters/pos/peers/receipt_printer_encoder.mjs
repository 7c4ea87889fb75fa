// Receipts by @point-of-sale/receipt-printer-encoder, as JSON: name to base64.
import { createRequire } from 'node:module';
const require = createRequire(process.env.NODE_PATH + '/');
const Encoder = require('@point-of-sale/receipt-printer-encoder');
const encoder = (options) => new Encoder({ language: 'esc-pos', columns: 42, ...options });
const pixels = { data: new Uint8ClampedArray(16 * 16 * 4).fill(65), width: 16, height: 16 };
const made = {
  sale: encoder()
    .initialize().codepage('auto')
    .align('center').bold(true).size(2, 2).line('Bäckerei Müller').size(1, 1).bold(false).align('left')
    .line('REGISTER: 1   CASHIER: Zoë').line('TRANS#: 4711').rule()
    .table([{ width: 30, align: 'left' }, { width: 10, align: 'right' }], [['Café crème', '2,50'], ['Smørrebrød', '8,90']])
    .rule({ style: 'double' })
    .invert(true).line('TOTAL 11.40').invert(false)
    .line('VISA 4111 1111 1111 1111')
    .barcode('4006381333931', 'ean13', 60).qrcode('https://example.org/TOTAL 99.99')
    .image(pixels, 16, 16, 'threshold')
    .newline(3).pulse().cut('partial').encode(),
  columns: encoder({ imageMode: 'column' }).initialize().image(pixels, 16, 16, 'threshold').line('REFUND').line('TOTAL -3.00').cut().encode(),
  nosale: encoder().initialize().line('NO SALE').pulse().cut().encode(),
  pulse: encoder().pulse().encode(),
  pages: encoder().initialize().codepage('cp866').line('ИТОГО').codepage('cp852').line('ŁÓDŹ').codepage('windows1252').line('5 €').cut().encode(),
};
const out = {};
for (const [name, bytes] of Object.entries(made)) out[name] = Buffer.from(bytes).toString('base64');
console.log(JSON.stringify(out));
