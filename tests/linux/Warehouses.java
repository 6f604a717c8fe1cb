import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * Business transactions on warehouses that live in the JVM's memory, as SPECjbb2005 has them: orders, payments, the state of
 * an order, deliveries, stock levels, in that benchmark's proportions, each with a receipt that is made and thrown away.
 * Arguments: rounds, and transactions in each. Writes ROUND after each, and at the end what all of it came to.
 */
final class Warehouses {
    private static final int ITEMS = 2000;
    private static final int CUSTOMERS = 300;

    private record Line(int item, int amount, long price) {}

    private record Order(int number, int customer, List<Line> lines, long total) {}

    private static final class Warehouse {
        final int[] stock = new int[ITEMS];
        final long[] balances = new long[CUSTOMERS];
        final Map<Integer, Order> orders = new TreeMap<>();
        final Deque<Order> open = new ArrayDeque<>();
        int next = 1;
        long income;
    }

    private final Warehouse[] warehouses = new Warehouse[4];
    private long state = 1;
    private long receipts;

    private Warehouses() {
        for (int w = 0; w < warehouses.length; w++) {
            warehouses[w] = new Warehouse();
            java.util.Arrays.fill(warehouses[w].stock, 100);
        }
    }

    private int below(int bound) {
        state = state * 6364136223846793005L + 1442695040888963407L;
        return (int) ((state >>> 33) % bound);
    }

    private void order(Warehouse at) {
        List<Line> lines = new ArrayList<>();
        long total = 0;
        for (int left = 5 + below(11); left > 0; left--) {
            int item = below(ITEMS);
            int amount = 1 + below(10);
            at.stock[item] -= amount;
            if (at.stock[item] < 10) {
                at.stock[item] += 91;
            }
            long price = 100 + item * 7L % 9900;
            lines.add(new Line(item, amount, price));
            total += price * amount;
        }
        Order order = new Order(at.next++, below(CUSTOMERS), lines, total);
        at.orders.put(order.number(), order);
        at.open.addLast(order);
        receipt(order);
    }

    private void receipt(Order order) {
        StringBuilder text = new StringBuilder("<order number=\"").append(order.number()).append("\">");
        for (Line line : order.lines()) {
            text.append("<line item=\"").append(line.item()).append("\" amount=\"").append(line.amount());
            text.append("\" price=\"").append(line.price() / 100).append('.').append(line.price() % 100).append("\"/>");
        }
        receipts = receipts * 31 + text.append("</order>").toString().hashCode();
    }

    private void payment(Warehouse at) {
        long sum = 100 + below(500000);
        at.balances[below(CUSTOMERS)] -= sum;
        at.income += sum;
    }

    private void status(Warehouse at) {
        Order order = at.orders.get(1 + below(at.next));
        if (order != null) {
            receipt(order);
        }
    }

    private void delivery(Warehouse at) {
        for (int left = 10; left > 0 && !at.open.isEmpty(); left--) {
            Order order = at.open.removeFirst();
            at.balances[order.customer()] += order.total();
            at.orders.remove(order.number() - 500);
        }
    }

    private void level(Warehouse at) {
        int low = 0;
        for (Order order : at.open) {
            for (Line line : order.lines()) {
                low += at.stock[line.item()] < 20 ? 1 : 0;
            }
        }
        receipts += low;
    }

    private void round(int transactions) {
        for (int done = 0; done < transactions; done++) {
            Warehouse at = warehouses[done % warehouses.length];
            int kind = below(23);
            if (kind < 10) {
                order(at);
            } else if (kind < 20) {
                payment(at);
            } else if (kind == 20) {
                status(at);
            } else if (kind == 21) {
                delivery(at);
            } else {
                level(at);
            }
        }
    }

    public static void main(String[] arguments) {
        Warehouses all = new Warehouses();
        for (int left = Integer.parseInt(arguments[0]); left > 0; left--) {
            all.round(Integer.parseInt(arguments[1]));
            System.out.println("ROUND");
            System.out.flush();
        }
        for (Warehouse one : all.warehouses) {
            long balance = java.util.Arrays.stream(one.balances).sum();
            System.out.println(one.next + " " + one.open.size() + " " + one.income + " " + balance + " " + all.receipts);
        }
    }
}
